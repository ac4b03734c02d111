// The pictures of the Edit tab: chosen from a file or drawn by the model, painted on, and given
// arrows. All of it lives in the page; it is sent with a request, under no name.
(() => {
  const SIDE = 384, BRUSH = 16, MOST = 4 * 1024 * 1024;
  const empty = () => ({ url: null, image: null, mask: null, painted: false, arrows: [] });
  const sides = { picture: empty(), reference: empty() };
  let state = sides.picture, tool = "brush", from = null; // what is seen, and the pen
  const canvas = () => document.getElementById("pathline-canvas");
  const say = (text) => { const at = document.getElementById("pathline-said"); if (at) at.textContent = text; };

  function clear(side) {
    const on = canvas();
    side.mask = document.createElement("canvas");
    side.mask.width = on.width; side.mask.height = on.height;
    side.painted = false; side.arrows = []; from = null;
  }

  function press(buttons, pressed) {
    for (const each of document.querySelectorAll(buttons)) each.setAttribute("aria-pressed", each === pressed);
  }

  function redraw() {
    const on = canvas(); if (!on) return;
    const pen = on.getContext("2d");
    pen.fillStyle = "#fff"; pen.fillRect(0, 0, on.width, on.height);
    if (state.image) { // the part in the middle that the model sees
      const { naturalWidth: w, naturalHeight: h } = state.image;
      const scale = Math.min(w / on.width, h / on.height);
      const [cw, ch] = [on.width * scale, on.height * scale];
      pen.imageSmoothingEnabled = scale > 1;
      pen.drawImage(state.image, (w - cw) / 2, (h - ch) / 2, cw, ch, 0, 0, on.width, on.height);
    }
    if (state.mask) { pen.globalAlpha = 0.5; pen.drawImage(state.mask, 0, 0); pen.globalAlpha = 1; }
    pen.strokeStyle = pen.fillStyle = "#dc2626"; pen.lineWidth = 3;
    for (const [x0, y0, x1, y1] of state.arrows) {
      const [a, b, c, d] = [x0 * on.width, y0 * on.height, x1 * on.width, y1 * on.height];
      pen.beginPath(); pen.moveTo(a, b); pen.lineTo(c, d); pen.stroke();
      pen.beginPath(); pen.arc(a, b, 4, 0, 7); pen.fill();
      const turn = Math.atan2(d - b, c - a);
      pen.beginPath(); pen.moveTo(c, d);
      for (const side of [2.6, -2.6]) pen.lineTo(c + 11 * Math.cos(turn + side), d + 11 * Math.sin(turn + side));
      pen.fill();
    }
  }

  function show(url) {
    if (!url) return;
    const image = new Image();
    const side = state;
    image.onload = () => { side.url = url; side.image = image; clear(side); redraw(); say(`${image.naturalWidth} × ${image.naturalHeight} pixels`); };
    image.onerror = () => say("this file is no picture that the page can show.");
    image.src = url;
  }

  function place(event) {
    const box = canvas().getBoundingClientRect();
    const share = (v, low, size) => Math.min(1, Math.max(0, (v - low) / size));
    return [share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height)];
  }

  function stroke([x0, y0], [x1, y1]) {
    const on = canvas(), pen = state.mask.getContext("2d");
    pen.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
    pen.strokeStyle = "#2563eb"; pen.lineWidth = 2 * BRUSH; pen.lineCap = "round";
    pen.beginPath(); pen.moveTo(x0 * on.width, y0 * on.height); pen.lineTo(x1 * on.width, y1 * on.height); pen.stroke();
    state.painted = true;
  }

  document.addEventListener("pointerdown", (event) => {
    if (event.target !== canvas() || !state.image) return;
    event.preventDefault();
    event.target.setPointerCapture(event.pointerId);
    from = place(event);
    if (tool !== "arrow") stroke(from, from);
    redraw();
  });
  document.addEventListener("pointermove", (event) => {
    if (!from || tool === "arrow") return;
    const to = place(event);
    stroke(from, to); from = to; redraw();
  });
  document.addEventListener("pointerup", (event) => {
    if (!from) return;
    if (tool === "arrow") state.arrows.push([...from, ...place(event)]);
    from = null; redraw();
  });
  document.addEventListener("change", (event) => {
    if (event.target.id !== "pathline-file" || !event.target.files.length) return;
    const file = event.target.files[0];
    if (file.size > MOST) { say(`this file has more than ${MOST / 1048576} MiB: scale it down.`); return; }
    const reader = new FileReader();
    reader.onload = () => show(reader.result);
    reader.readAsDataURL(file);
    event.target.value = "";
  });
  document.addEventListener("click", (event) => {
    const button = event.target, { tool: chosen, side } = button.dataset || {};
    if (chosen && button.closest("#pathline-tools")) {
      if (chosen === "clear") { clear(state); redraw(); return; }
      tool = chosen;
      press("#pathline-tools [data-tool]", button);
    } else if (side && button.closest("#pathline-sides")) {
      state = sides[side]; from = null;
      press("#pathline-sides [data-side]", button);
      redraw();
    }
  });

  function told(side) { // null where there is no picture
    if (!side.url) return null;
    let mask = null;
    if (side.painted) { // black on white
      const flat = document.createElement("canvas");
      flat.width = side.mask.width; flat.height = side.mask.height;
      const pen = flat.getContext("2d");
      pen.drawImage(side.mask, 0, 0);
      for (const [how, colour] of [["source-in", "#000"], ["destination-over", "#fff"]]) {
        pen.globalCompositeOperation = how; pen.fillStyle = colour;
        pen.fillRect(0, 0, flat.width, flat.height);
      }
      mask = flat.toDataURL("image/png");
    }
    return { picture: side.url, mask, points: side.arrows };
  }

  window.pathline = {
    show,
    shape(text) { // "height width" of the model's pictures
      const [h, w] = String(text).split(" ").map(Number), on = canvas();
      if (!on || !h || !w) return;
      on.width = w >= h ? SIDE : Math.round(SIDE * w / h);
      on.height = h >= w ? SIDE : Math.round(SIDE * h / w);
      Object.values(sides).forEach(clear); redraw();
    },
    sent() {
      const picture = told(sides.picture);
      return picture ? JSON.stringify({ ...picture, reference: told(sides.reference) }) : "";
    },
  };
})();

// The picture of the Edit tab: chosen from a file or drawn by the model, painted on, and given
// arrows. All of it lives in the page; it is sent with a request, under no name.
(() => {
  const SIDE = 384, BRUSH = 16, MOST = 4 * 1024 * 1024;
  const state = { url: null, image: null, mask: null, painted: false, arrows: [], tool: "brush", from: null };
  const canvas = () => document.getElementById("pathline-canvas");
  const say = (text) => { const at = document.getElementById("pathline-said"); if (at) at.textContent = text; };

  function clear() {
    const on = canvas();
    state.mask = document.createElement("canvas");
    state.mask.width = on.width; state.mask.height = on.height;
    state.painted = false; state.arrows = []; state.from = null;
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
    image.onload = () => { state.url = url; state.image = image; clear(); redraw(); say(`${image.naturalWidth} × ${image.naturalHeight} pixels`); };
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
    pen.globalCompositeOperation = state.tool === "eraser" ? "destination-out" : "source-over";
    pen.strokeStyle = "#2563eb"; pen.lineWidth = 2 * BRUSH; pen.lineCap = "round";
    pen.beginPath(); pen.moveTo(x0 * on.width, y0 * on.height); pen.lineTo(x1 * on.width, y1 * on.height); pen.stroke();
    state.painted = true;
  }

  document.addEventListener("pointerdown", (event) => {
    if (event.target !== canvas() || !state.image) return;
    event.preventDefault();
    event.target.setPointerCapture(event.pointerId);
    state.from = place(event);
    if (state.tool !== "arrow") stroke(state.from, state.from);
    redraw();
  });
  document.addEventListener("pointermove", (event) => {
    if (!state.from || state.tool === "arrow") return;
    const to = place(event);
    stroke(state.from, to); state.from = to; redraw();
  });
  document.addEventListener("pointerup", (event) => {
    if (!state.from) return;
    if (state.tool === "arrow") state.arrows.push([...state.from, ...place(event)]);
    state.from = null; redraw();
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
    const tool = event.target.dataset && event.target.dataset.tool;
    if (!tool || !event.target.closest("#pathline-tools")) return;
    if (tool === "clear") { clear(); redraw(); return; }
    state.tool = tool;
    for (const each of document.querySelectorAll("#pathline-tools [data-tool]")) each.setAttribute("aria-pressed", each === event.target);
  });

  window.pathline = {
    show,
    shape(text) { // "height width" of the model's pictures
      const [h, w] = String(text).split(" ").map(Number), on = canvas();
      if (!on || !h || !w) return;
      on.width = w >= h ? SIDE : Math.round(SIDE * w / h);
      on.height = h >= w ? SIDE : Math.round(SIDE * h / w);
      clear(); redraw();
    },
    sent() {
      if (!state.url) return "";
      let mask = null;
      if (state.painted) { // black on white
        const flat = document.createElement("canvas");
        flat.width = state.mask.width; flat.height = state.mask.height;
        const pen = flat.getContext("2d");
        pen.drawImage(state.mask, 0, 0);
        for (const [how, colour] of [["source-in", "#000"], ["destination-over", "#fff"]]) {
          pen.globalCompositeOperation = how; pen.fillStyle = colour;
          pen.fillRect(0, 0, flat.width, flat.height);
        }
        mask = flat.toDataURL("image/png");
      }
      return JSON.stringify({ picture: state.url, mask, points: state.arrows });
    },
  };
})();

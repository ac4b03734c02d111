"""The command line: it computes what the library computes, and refuses in one sentence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import tiny_model
from typer.testing import CliRunner

import pathline as pl
from pathline.bench import BENCHES, Bar, Report, Row
from pathline.cli import listing
from pathline.cli.main import app
from pathline.cli.options import chosen_condition, parsed_seeds
from pathline.core.images import Layout, read_pixels, read_receipt, to_pixels, write_picture
from pathline.solvers import SolverSchedule
from pathline.solvers.saved import schedule_file
from pathline.solvers.solver import solvers


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with two models: one that reads text, one that takes no condition."""
    tiny_model(tmp_path / "tiny")
    tiny_model(tmp_path / "plain", conditional=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    """The outcome of `pathline` with these words."""
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words):
    outcome = run(*words)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def drawn(name, **call):
    """What `pl.sample` draws, as pixels."""
    with torch.no_grad():
        return to_pixels(pl.sample(pl.load(name), **call).x)


def test_a_sheet_shows_what_sample_draws(here):
    done(
        "sample", "tiny", "a red apple", "--solver", "dpmpp", "--order", 3, "--steps", 4,
        "--grid", "karras", "--guidance", 2.5, "--seed", 5, "-n", 6, "--scale", 2, "--columns", 3,
        "-o", "apple.png",
    )  # fmt: skip
    x = drawn(
        "tiny", n=6, seed=5, solver=pl.DPMpp(order=3), grid=pl.grids.karras(4),
        guide=pl.CFG(2.5), text="a red apple",
    )  # fmt: skip
    assert np.array_equal(read_pixels("apple.png"), Layout(3, 2, 4).arrange(x))


def test_one_file_a_sample_shows_what_sample_draws(here):
    done("sample", "plain", "--solver", "heun", "--steps", 3, "--seeds", "0-2,9", "-o", "each/")
    x = drawn("plain", seeds=[0, 1, 2, 9], solver="heun", steps=3)
    assert files(here / "each") == ["000000.png", "000001.png", "000002.png", "000009.png"]
    for seed, pixels in zip([0, 1, 2, 9], x, strict=True):
        assert np.array_equal(read_pixels(f"each/{seed:06d}.png"), pixels)


def test_times_of_ones_own_and_a_last_step_to_data(here):
    done(
        "sample",
        "plain",
        "--grid",
        "1,0.5,0.25",
        "--last",
        "denoise",
        "-n",
        1,
        "--scale",
        1,
        "-o",
        "a.png",
    )
    x = drawn("plain", grid=pl.grids.times([1, 0.5, 0.25], last="denoise"))
    assert np.array_equal(read_pixels("a.png")[4:-4, 4:-4], x[0])
    assert read_receipt("a.png").grid == (1.0, 0.5, 0.25, 0.0)


def test_batches_change_neither_the_seeds_nor_their_order(here):
    done("sample", "plain", "--steps", 2, "-n", 5, "--batch", 2, "--columns", 5, "-o", "a.png")
    x = np.concatenate([drawn("plain", seeds=s, steps=2) for s in ([0, 1], [2, 3], [4])])
    assert np.array_equal(read_pixels("a.png"), Layout(5, 12, 4).arrange(x))
    assert read_receipt("a.png").seeds == (0, 1, 2, 3, 4)


def test_a_model_recommends_and_the_user_decides(here):
    tiny_model(
        here / "wise", defaults={"solver": "heun", "steps": 3, "guidance": 2.0, "grid": "karras"}
    )
    done("sample", "wise", "a dog", "-n", 1, "-o", "a.png")
    recipe = read_receipt("a.png").recipe
    assert (recipe["solver"]["name"], recipe["grid"]["name"]) == ("heun", "karras")
    assert (recipe["guide"]["weight"], read_receipt("a.png").nfe) == (2.0, 6)
    done(
        "sample",
        "wise",
        "a dog",
        "-n",
        1,
        "--solver",
        "ddim",
        "--steps",
        2,
        "--guidance",
        1,
        "-o",
        "b.png",
    )
    assert read_receipt("b.png").recipe["guide"] is None
    assert (read_receipt("b.png").recipe["solver"]["name"], read_receipt("b.png").nfe) == (
        "ddim",
        2,
    )


def test_without_a_word_there_is_no_guidance_and_sixteen_samples(here):
    said = done("sample", "tiny", "--steps", 1)
    receipt = read_receipt("tiny.png")
    assert (receipt.recipe["guide"], receipt.recipe["cond"], len(receipt.seeds)) == (None, {}, 16)
    assert "tiny.png: 16 samples, 1 evaluations each" in said
    assert "pathline replay tiny.png" in said


def test_a_name_that_nobody_gave_overwrites_nothing(here):
    (here / "plain.png").write_text("mine")
    done("sample", "plain", "--steps", 1, "-n", 1)
    assert (here / "plain.png").read_text() == "mine"
    assert read_receipt("plain-2.png").seeds == (0,)


@pytest.mark.parametrize(
    "text, seeds", [("3", (3,)), ("0-2", (0, 1, 2)), (" 4 , 7-8,1", (4, 7, 8, 1))]
)
def test_seeds_as_people_write_them(text, seeds):
    assert parsed_seeds(text) == seeds


REFUSED = {
    "unknown solver": (["--solver", "dpmp_2m"], "unknown solver 'dpmp_2m': did you mean dpmpp_2m"),
    "an order it lacks": (["--solver", "euler", "--order", 2], "euler takes no 'order'"),
    "an order nobody has": (["--solver", "dpmpp", "--order", 9], "orders 1, 2 and 3"),
    "unknown grid": (["--grid", "carras"], "unknown grid 'carras': did you mean karras"),
    "no steps": (["--steps", 0], "at least 1 step"),
    "a grid that turns back": (["--grid", "1,0.2,0.5"], "must move one way"),
    "a grid off the path": (["--grid", "1.5,0.5"], "path time runs from 0"),
    "a grid of words": (["--grid", "1,half,0"], "cannot be read"),
    "a grid and other steps": (["--grid", "1,0.5", "--steps", 3], "leave --steps out"),
    "unknown last step": (["--last", "never"], "choose 'stop' or 'denoise'"),
    "an empty prompt": ([""], "text is empty"),
    "too long a prompt": (["apple " * 50], "shorten it"),
    "guidance to nothing": (["--guidance", 3], "nothing to guide to"),
    "no samples": (["-n", 0], "from 1 to"),
    "seeds and another number": (["-n", 2, "--seeds", "0-2"], "3 seeds were given for 2 samples"),
    "seed and seeds": (["--seed", 1, "--seeds", "0-2"], "leave one out"),
    "seeds of words": (["--seeds", "0-2,x"], "write them as 0-15,20"),
    "seeds backwards": (["--seeds", "5-2"], "write them as 0-15,20"),
    "a negative seed": (["--seed", -1], "not an integer from 0"),
    "an empty batch": (["--batch", 0], "at least 1 sample"),
    "a sheet without columns": (["--columns", 0], "columns ≥ 1"),
    "a grid that rises": (["--grid", "0,0.5,1"], "give --grid 1,0.5,0"),
    "a grid that rises, with noise": (
        ["--grid", "0,0.5,1", "--solver", "ddpm"], "give --grid 1,0.5,0"
    ),
    "sada with noise": (["--speed", "sada", "--solver", "ddpm"], "give --solver dpmpp_2m"),
    "guidance of no number": (["a cat", "--guidance", "nan"], "give a finite number"),
    "a device that is not here": (["--device", "tpu"], "no device 'tpu' here"),
    "not a PNG": (["-o", "apple.jpg"], "a sheet is a PNG file"),
    "below a file": (["-o", "file/apple.png"], "file is a file, not a folder"),
    "a file as folder": (["--each", "-o", "file"], "is a file, not a folder"),
    "a folder like a file": (["-o", "folder.png"], "without .png"),
}  # fmt: skip


@pytest.mark.parametrize("words, says", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused_in_one_sentence(here, words, says):
    (here / "file").write_text("a file")
    (here / "folder.png").mkdir()
    assert_refused(here, ["sample", "tiny", *words], says)


def assert_refused(here, words, says):
    """Exit code 2, one line that says it, no traceback, and nothing written."""
    before = files(here)
    outcome = run(*words)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("pathline: ") and outcome.stderr.count("\n") == 1
    assert says in outcome.stderr
    assert files(here) == before


def test_models_that_cannot_be_sampled(here):
    (here / "empty").mkdir()
    (here / "folder").mkdir()
    tiny_model(here / "foreign", view="velosity")
    config = here / "foreign" / "config.json"
    config.write_text(config.read_text().replace("pathline-model-1", "diffusers"))
    tiny_model(here / "damaged")
    (here / "damaged" / "model.safetensors").write_bytes(b"\x00" * 99)
    tiny_model(here / "blind", view="velosity")
    for name, says in {
        "emojy": "unknown model 'emojy'",
        "models/nowhere": "there is no model folder",
        "empty": "not a Pathline model",
        "foreign": "its format is diffusers",
        "damaged": "cannot be read as safetensors",
        "blind": "unknown view 'velosity': did you mean velocity",
    }.items():
        assert_refused(here, ["sample", name, "--steps", 1], says)


def test_a_model_without_a_condition_takes_neither_prompt_nor_guidance(here):
    assert_refused(here, ["sample", "plain", "a dog"], "takes no condition")
    assert_refused(here, ["sample", "plain", "--guidance", 2], "no null condition")


def test_a_place_that_is_read_only_is_refused_before_the_work(here, monkeypatch):
    """The suite may run as root, whom no mode stops: the system is asked, and says no."""
    monkeypatch.setattr("pathline.cli.output.os.access", lambda *_: False)
    assert_refused(here, ["sample", "plain", "-o", "a.png"], "read-only")


def test_a_network_gone_wrong_is_reported_with_step_and_time(here):
    folder = tiny_model(here / "wild", seed=1)
    from safetensors.torch import load_file, save_file

    weights = {k: v * float("nan") for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    from pathline.core.receipt import sha256

    config["weights"]["sha256"] = sha256(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(here, ["sample", "wild", "-n", 2, "--steps", 3], "step 1 of 3")


def test_what_is_done_stays_when_a_later_batch_fails(here, monkeypatch):
    """One file a sample: a batch is written when it is done, and an interrupt loses one at most."""
    from pathline.cli import request

    def sample(model, *, seeds, **call):
        if 3 in seeds:
            raise KeyboardInterrupt
        return pl.sample(model, seeds=seeds, **call)

    monkeypatch.setattr(request, "sample", sample)
    outcome = run("sample", "plain", "--steps", 1, "-n", 6, "--batch", 2, "-o", "each/")
    assert outcome.exit_code == 130 and outcome.stderr.splitlines() == [
        "each: 2 of 6 files are there; with -o each/ the same command goes on from them.",
        "pathline: interrupted.",
    ]
    assert files(here / "each") == ["000000.png", "000001.png"]


EACH = "sample", "tiny", "a cat", "--solver", "ddpm", "--steps", 2, "-n", 5, "--batch", 2


def written(before=None):
    """The bytes of each file, and which of them are other files than before."""
    found = {path.name: path for path in sorted(Path("each").iterdir())}
    stamps = {name: path.stat().st_mtime_ns for name, path in found.items()}
    new = [name for name in stamps if before is None or stamps[name] != before.get(name)]
    return {name: path.read_bytes() for name, path in found.items()}, stamps, new


def test_the_same_command_goes_on_from_whole_batches(here):
    """What is there stays, what is missing comes with its batch, and the bits are the same."""
    assert "each: 5 files, 2 evaluations" in done(*EACH, "-o", "each/")
    content, stamps, _ = written()
    assert "all 5 files were there already" in done(*EACH, "-o", "each/")
    assert written(stamps)[::2] == (content, [])
    Path("each/000003.png").unlink()
    assert "2 files beside 3 that were there already" in done(*EACH, "-o", "each/")
    again, _, new = written(stamps)
    assert again == content and new == ["000002.png", "000003.png"]


@pytest.mark.parametrize(
    "others",
    [
        ("--steps", 3), ("--solver", "ddim"), ("--guidance", 3), ("--scale", 2), ("--batch", 3),
        ("--grid", "karras"), ("--last", "denoise"),
    ],
)  # fmt: skip
def test_files_of_another_request_are_made_again(here, others):
    done(*EACH, "-o", "each/")
    assert "each: 5 files, " in done(*EACH, *others, "-o", "each/")
    assert "all 5 files" in done(*EACH, *others, "-o", "each/")


def test_files_of_other_weights_or_words_and_damaged_ones_are_made_again(here):
    done(*EACH, "-o", "each/")
    tiny_model(here / "tiny", seed=1)
    assert "each: 5 files, " in done(*EACH, "-o", "each/")
    words = list(EACH)
    words[2] = "a dog"
    assert "each: 5 files, " in done(*words, "-o", "each/")
    whole = Path("each/000004.png").read_bytes()
    Path("each/000004.png").write_bytes(whole[:-30])
    assert "1 files beside 4 that were there already" in done(*words, "-o", "each/")
    assert Path("each/000004.png").read_bytes() == whole


def test_guidance_alone_is_what_a_thinned_schedule_is_for(here):
    """What to type is said, and another weight is one line without a place in the code."""
    plain = SolverSchedule.of(pl.DDIM(), pl.CondOT(), pl.grids.log_snr(3))
    about = {"guide": {"name": "cfg", "weight": 2.0}}
    made = replace(plain, ratios=[None, None, 0.5], about=about)
    made.save(schedule_file(here / "tiny", made.nfe, "s3_guided"))
    words = ["sample", "tiny", "a cat", "-n", 1, "--solver", "s3_guided", "-o", "a.png"]
    for others in (["--guidance", 1], ["--guide", "clip:-1,high=1"]):
        assert_refused(here, [*words, *others], "no other --guide, and --guidance 2, which it was")
    assert run(*words, "--guidance", 2).stderr == ""
    said = run(*words, "--guidance", 4).stderr
    assert said.startswith("warning: this schedule was fitted to guidance of weight 2")
    assert said.count("\n") == 1 and ".py" not in said
    assert run("replay", "a.png").stderr == ""


def test_a_replay_writes_pictures_alone_and_tells_a_changed_file_from_rounding(here):
    done("sample", "plain", "--steps", 1, "-n", 1, "-o", "a.png")
    assert_refused(here, ["replay", "a.png", "-o", "again.txt"], "-o again.txt.png")
    pixels, receipt = read_pixels("a.png").copy(), read_receipt("a.png")
    inside = pixels[10, 10].astype(int)
    for by, says in ((8, "the processor rounds differently"), (9, "the file was changed since")):
        pixels[10, 10] = np.where(inside < 128, inside + by, inside - by)
        write_picture("a.png", pixels, receipt)
        outcome = run("replay", "a.png")
        assert outcome.exit_code == 1
        assert f"by {by} of 255 at most" in outcome.stdout and says in outcome.stdout
    write_picture("a.png", pixels, replace(receipt, versions={**receipt.versions, "torch": "1.0"}))
    said = run("replay", "a.png").stdout
    assert "was changed since" in said and "torch 1.0 then" in said


def test_our_own_defects_keep_their_traceback(here, monkeypatch):
    def breaks(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("pathline.cli.sampling.watched", breaks)
    outcome = run("sample", "plain", "-o", "a.png")
    assert isinstance(outcome.exception, RuntimeError)
    assert not (here / "a.png").exists()


def test_a_prompt_is_told_in_the_words_of_the_model():
    def model(**details):
        return pl.Denoiser(lambda x, t: x, pl.CondOT(), details=details)

    assert chosen_condition("bag", model(condition="label")) == {"label": "bag"}
    assert chosen_condition("bag", model(condition="text")) == {"text": "bag"}
    assert chosen_condition(None, model(condition="text")) == {}


def test_training_is_passed_on(here, monkeypatch):
    asked = []

    def train(recipe, out, *, resume, devices, strategy):
        asked.append((recipe.name, str(out), resume, devices, strategy))
        return out / "model"

    monkeypatch.setattr("pathline.learn.trainer.train", train)
    assert "pathline sample runs/emoji/model" in done("train", "emoji")
    done("train", "emoji", "-o", "mine", "--resume", "--devices", "2", "--strategy", "fsdp")
    assert asked == [
        ("emoji", "runs/emoji", False, 1, "ddp"),
        ("emoji", "mine", True, 2, "fsdp"),
    ]
    assert_refused(here, ["train", "emoji", "--strategy", "fdsp"], "did you mean fsdp")
    (here / "file").write_text("a file")
    assert_refused(here, ["train", "emoji", "-o", "file/run"], "is a file, not a folder")


def test_benchmarks_are_passed_on_and_their_bars_set_the_exit_code(here, monkeypatch):
    report = Report("overhead", "µs", [Row("DDIM", "us", 2.0)], [Bar("ratio", 0.5, 1.0)], {})
    monkeypatch.setitem(BENCHES, "overhead", lambda: report)
    assert json.loads(done("bench", "overhead", "--json", "-o", "out"))["passed"]
    assert files(here / "out") == ["overhead.json", "overhead.md"]
    assert "DDIM" in done("bench", "overhead")
    missed = replace(report, bars=[Bar("ratio", 2.0, 1.0)])
    monkeypatch.setitem(BENCHES, "overhead", lambda: missed)
    assert run("bench", "overhead").exit_code == 1


def test_the_table_of_solvers_is_the_registry():
    rows = json.loads(done("solvers", "--json"))
    assert [row["name"] for row in rows] == [entry.name for entry in solvers]
    for row in rows:
        solver = solvers.build(row["name"])
        claims = (solver.order, solver.nfe_per_step, solver.is_stochastic)
        assert (row["order"], row["nfe_per_step"], row["stochastic"]) == claims
        assert all(solvers.entry(alias).name == row["name"] for alias in row["aliases"])
    shown = done("solvers")
    assert all(row["name"] in shown and row["paper"] in shown for row in rows)


def test_orders_are_measured_on_request(monkeypatch):
    """±0.15 as in the contract suite, which is what holds the claims of all solvers."""
    orders = {"euler": 1, "dpmpp_2m": 2, "rk4": 4}
    monkeypatch.setattr(listing, "all_solvers", [solvers.entry(n) for n in (*orders, "ddpm")])
    rows = json.loads(done("solvers", "--measure", "--json"))
    measured = {row["name"]: row["measured"] for row in rows}
    assert measured.pop("ddpm") is None
    assert measured == pytest.approx(orders, abs=0.15)


@pytest.mark.parametrize("what", ["grids", "paths", "guides", "models", "systems", "data", "bench"])
def test_lists(what):
    rows = json.loads(done(what, "--json"))
    shown = done(what)
    assert all((row.get("name") or row["slug"]) in shown for row in rows)


def test_a_system_is_run_and_reported_as_the_design_says(here):
    words = ["run", "dpm-solver", "--only", "point-mass", "--only", "first-order", "--json"]
    report = json.loads(done(*words, "-o", "out"))
    assert set(report) == {"system", "title", "claims", "seconds", "artifacts"}
    keys = {"id", "text", "measured", "threshold", "better", "passed", "headline", "needs"}
    assert {claim["id"] for claim in report["claims"]} == {"point-mass", "first-order"}
    assert all(set(claim) == keys and claim["passed"] for claim in report["claims"])
    assert [(here / path).is_file() for path in report["artifacts"]] == [True, True]


def test_the_claims_of_a_system_are_listed_with_what_was_last_measured():
    rows = {row["claim"]: row for row in json.loads(done("systems", "dpm-solver", "--json"))}
    assert abs(float(rows["order-2m"]["last measured"]) - 2) <= 0.2


def test_a_claim_that_fails_sets_the_exit_code(monkeypatch, here):
    from pathline.systems.system import Measured

    monkeypatch.setattr(Measured, "passed", False)
    assert run("run", "dpm-solver", "--only", "point-mass").exit_code == 1


def test_names_that_nobody_knows(here):
    assert_refused(here, ["run", "dpm-solvr"], "did you mean dpm-solver")
    assert_refused(here, ["run", "dpm-solver", "--only", "point-mas"], "did you mean point-mass")
    assert_refused(here, ["data", "emojis"], "did you mean emoji")
    assert_refused(here, ["bench", "overhed"], "did you mean overhead")
    assert_refused(here, ["bench", "overhead", "--nfe", "5"], "takes no --nfe")
    assert_refused(here, ["bench", "paths", "--problem", "m4"], "takes no --problem")
    assert_refused(here, ["train", "nothing.toml"], "no training configuration")


def test_wrong_usage_is_refused_by_the_parser(here):
    for words in (["draw"], ["sample"], ["sample", "tiny", "--steps", "many"], ["replay"]):
        outcome = run(*words)
        assert outcome.exit_code == 2 and "Traceback" not in outcome.output


def test_version_names_what_decides_the_bits():
    assert done("--version").split()[:2] == ["pathline", pl.core.receipt.versions()["pathline"]]
    assert torch.__version__ in done("--version")

"""The picture of a training: which panels a curve has, what is drawn in them, and that equal curves are equal bytes."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks import training_plot
from tasks.training_plot import caption, picture, rows_of

SFT = [{"step": i + 1, "loss": 2.0 - 0.1 * i, "learning_rate": 1e-4, "mean_token_accuracy": 0.25 + 0.025 * i} for i in range(10)]
DPO = [
    {"step": i + 1, "loss": 0.7 - 0.01 * i, "rewards/chosen": 0.1 * i, "rewards/rejected": -0.2 * i, "rewards/margins": 0.3 * i,
     "rewards/accuracies": 0.5 + 0.01 * i}
    for i in range(50)
]  # fmt: skip


def ppo(iterations=6, steps=4, **more):
    """A curve whose iterations have `steps` optimiser steps each, which share what was sampled."""
    return [
        {
            "step": steps * i + s + 1, "loss": 0.0, "iteration": float(i), "answers": 16.0, "reward": 0.1 * i, "reward_std": 0.4,
            "kl": 0.5 * i, "kl_coefficient": 0.05 + 0.01 * i, "entropy": 2.0 - 0.1 * i, "answer_tokens": 30.0 - i,
            "finished": 1.0, "explained_variance": 0.1 * i,
            "policy_loss": 0.01 * s, "value_loss": 1.0 / (steps * i + s + 1), "clip_fraction": 0.1,
            **({"heldout_logp": -1.5 - 0.1 * i} if i % 2 == 0 else {}), **more,
        }
        for i in range(iterations) for s in range(steps)
    ]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """`drawn(rows)`: for each panel its title, its lines as (steps, values), and its legend."""
    found = []
    original = training_plot._draw

    def draw(axes, panel, rows):
        original(axes, panel, rows)
        lines = [([*line.get_xdata()], [*line.get_ydata()]) for line in axes.lines]
        legend = [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
        found.append((axes.get_title(), lines, legend))

    monkeypatch.setattr(training_plot, "_draw", draw)

    def of(rows):
        found.clear()
        return found if picture(rows) else None

    return of


def test_a_curve_of_sft_has_its_loss_and_accuracy(drawn):
    loss, accuracy = drawn(SFT)
    assert loss == ("loss  2 → 1.1", [(list(range(1, 11)), [row["loss"] for row in SFT])], [])
    assert accuracy[0] == "accuracy  0.25 → 0.475"


def test_a_curve_of_dpo_has_margins_and_both_sides(drawn):
    panels = drawn(DPO)
    assert [title for title, _, _ in panels] == [
        "loss  0.7 → 0.21", "accuracy  0.5 → 0.99", "margin of chosen over rejected  0 → 14.7", "reward",
    ]  # fmt: skip
    assert panels[3][2] == ["chosen 0 → 4.9", "rejected 0 → -9.8"]


def test_a_curve_of_ppo_has_a_panel_for_everything_worth_watching(drawn):
    panels = {title.partition("  ")[0]: (lines, legend) for title, lines, legend in drawn(ppo())}
    assert list(panels) == [
        "reward", "KL to the SFT policy", "answer length", "answers that end by themselves", "entropy", "held-out chosen answers",
        "value loss", "clipped by the policy loss",
    ]  # fmt: skip
    assert panels["reward"][0] == [([1, 5, 9, 13, 17, 21], pytest.approx([0.1 * i for i in range(6)]))]  # one point an iteration
    assert panels["held-out chosen answers"][0] == [([1, 9, 17], pytest.approx([-1.5, -1.7, -1.9]))]
    assert panels["KL to the SFT policy"][1] == ["KL 0 → 2.5", "coefficient 0.05 → 0.1"]
    assert len(panels["value loss"][0][0][0]) == 24  # one point a step
    fixed = {title.partition("  ")[0]: legend for title, _, legend in drawn(ppo(kl_coefficient=0.05))}
    assert fixed["KL to the SFT policy"] == []  # a coefficient that stays as it is needs no axis


def test_several_rewards_are_shown_one_by_one(drawn):
    panels = drawn(ppo(**{"reward_of/regex": 0.5, "reward_of/reward_model": 1.5}))
    assert panels[1][0] == "each reward by itself"
    assert panels[1][2] == ["regex 0.5 → 0.5", "reward model 1.5 → 1.5"]
    assert "each reward by itself" not in [title for title, _, _ in drawn(ppo(**{"reward_of/regex": 0.5}))]


def test_a_group_algorithm_without_a_value_model_shows_its_policy_loss(drawn):
    rows = [{"step": i + 1, "loss": 0.1 * i, "reward": 0.1 * i, "kl": 0.0, "entropy": 1.0} for i in range(5)]
    assert [title.partition("  ")[0] for title, _, _ in drawn(rows)] == [
        "reward",
        "KL to the SFT policy",
        "entropy",
        "policy loss",
    ]


def test_a_long_noisy_curve_is_averaged_and_keeps_its_ends(drawn):
    rows = [{"step": i + 1, "loss": float(i % 2) if 0 < i < 999 else 0.5} for i in range(1000)]
    [(title, (raw, smooth), _)] = drawn(rows)
    assert title == "loss  0.5 → 0.5"
    assert len(raw[0]) == len(smooth[0]) == math.ceil(1000 / 3)
    assert (raw[0][0], raw[1][1]) == (2.0, pytest.approx(2 / 3))  # means of three neighbours
    assert (smooth[1][0], smooth[1][-1]) == (raw[1][0], raw[1][-1])
    assert all(abs(value - 0.5) < 0.02 for value in smooth[1][20:-20])


def test_what_is_no_number_is_left_out_and_nothing_gives_no_picture(drawn):
    gappy = [{"step": i + 1, "loss": math.nan if i == 2 else 1.0} for i in range(5)]
    assert drawn(gappy)[0][1] == [([1, 2, 4, 5], [1.0] * 4)]
    for rows in ([], SFT[:1], [{"step": 1}, {"step": 2}], [{"step": i, "loss": math.inf} for i in range(5)]):
        assert picture(rows) is None
        assert caption(rows) == ""


def test_the_caption_says_in_words_what_the_picture_shows():
    assert caption(SFT) == "Steps 1 to 10: loss (all of it) 2 → 1.1; accuracy (next token) 0.25 → 0.475."


def test_equal_curves_are_equal_bytes_in_any_process():
    here = Path(__file__).parent
    code = (
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]; from test_training_plot import picture, ppo; "
        "sys.stdout.buffer.write(picture(ppo()))"
    )
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, check=True, cwd=here).stdout
    assert other == picture(ppo())
    assert b"matplotlib" not in other.lower()


def test_a_training_that_ended_itself_leaves_its_curve_on_a_page(tmp_path, monkeypatch):
    from tasks import stage
    from tasks.core.errors import GateError

    monkeypatch.setenv("SOME_API_KEY", "abcdefgh12345")
    pages = []
    monkeypatch.setattr(stage, "create_markdown_artifact", lambda text, **more: pages.append((text, more)))
    stage._show_unfinished(tmp_path, "plan-ppo", GateError("ppo: it went wrong"))
    assert pages == []
    (tmp_path / "training.json").write_text(json.dumps(ppo()))
    stage._show_unfinished(tmp_path, "plan-ppo", GateError("ppo: it went wrong, abcdefgh12345"))
    [(text, more)] = pages
    said = "ppo: it went wrong, <SOME_API_KEY>"
    assert more == {"key": "plan-ppo-unfinished", "description": said}
    assert text.startswith(f"# {said}\n\n![training](data:image/png;base64,")


@pytest.mark.parametrize("ground", [255, 13])
def test_it_reads_on_white_and_on_black(ground):
    image = np.asarray(Image.open(io.BytesIO(picture(ppo()))).convert("RGBA"), dtype=float)
    alpha = image[..., 3] / 255
    assert (alpha == 0).mean() > 0.5  # no ground of its own
    opaque = image[alpha > 0.95][:, :3]
    assert (abs(opaque.mean(axis=1) - ground) > 60).all()  # every solid stroke stands off


def test_the_curve_is_read_where_a_training_left_it(tmp_path):
    assert rows_of(tmp_path) == ()
    (tmp_path / "training.json").write_text('[{"step": 1, "loss": 2.0}]')
    assert rows_of(tmp_path) == [{"step": 1, "loss": 2.0}]

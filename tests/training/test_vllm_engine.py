"""Answers by a vLLM server, played on loopback by a tiny model: what is served is what is trained, or nothing is learned."""

import json
import re
import shutil

import practising
import pytest
import tiny
import torch
from endpoint import KEY
from loopback_vllm import LoopbackVllm, error
from practising import curve, spec

from tasks.chain import check_served
from tasks.core.errors import MachineError, SpecError
from tasks.core.files import tree
from tasks.core.launch import run_child
from tasks.core.spec import canonical
from tasks.group import GrpoSpec, RlooSpec
from tasks.methods import VLLM_METHODS, Dora, Full, Lora, RsLora
from tasks.policy import base_path, read_record
from tasks.ppo import PpoSpec
from tasks.training import engines, grpo, rloo
from tasks.training.adapters import start
from tasks.training.checkpoints import newest_complete
from tasks.training.data import Encoder
from tasks.training.rollout import Ask, TransformersEngine
from tasks.vllm_server import ROLE

pytestmark = [pytest.mark.filterwarnings(warning) for warning in practising.WARNINGS]
VLLM = {"engine": "vllm"}
SHORT = {"rewards": [{"rule": "length", "unit": "characters", "at_most": 8}]}
"""rewards that differ from answer to answer, also where none ends by itself"""


@pytest.fixture
def base(studio):
    """Folder of the base that every policy here started from."""
    return base_path(studio.shop.models, read_record(studio.shop.policy).base)


def adapter_moves(names):
    """Each is taken up when the one before it has been dropped, and the last is dropped too."""
    return [move for name in names for move in (("load", name), ("unload", name))]


def practise_group(studio, run, **more):
    """One iteration of GRPO, or RLOO: payload folder, metrics."""
    job = more.pop("job", grpo)
    out = studio.fresh("out")
    fields = {
        "method": tiny.METHOD["lora"], "iterations": 1, "rollout_batch": 8, "global_batch": 8, "samples": 4, "max_new_tokens": 6,
        "max_length": 64, "learning_rate": 5e-3, **practising.FINISHED, **VLLM, **more,
    }  # fmt: skip
    asked = (GrpoSpec if job is grpo else RlooSpec).model_validate(fields)
    return out, job.run(asked, {"policy": studio.sft("lora"), "prompts": studio.shop.preferences}, out, run)


# -- it learns from what is served


@pytest.mark.parametrize("sft", ["lora", "full"])
def test_ppo_learns_from_answers_of_the_server_which_holds_the_policy_as_it_is_now(studio, base, serve, sft):
    policy, said = studio.sft(sft), []
    vllm = LoopbackVllm(base if sft == "lora" else policy / "model")
    run = studio.run(log=said.append)
    with serve(vllm, ROLE) as endpoint:
        out, metrics = studio.practise(spec(**VLLM, **SHORT, min_new_tokens=2, temperature=0.8), policy, run=run)
    rows = curve(out)
    assert len(rows) == 8
    assert {row["ratio_start"] for row in rows} == {0.0}
    assert [row["sampler_gap"] for row in rows] == [rows[0]["sampler_gap"]] * 4 + [rows[4]["sampler_gap"]] * 4
    assert all(row["sampler_gap"] < 1e-5 for row in rows)  # nats per token, in float32 on both sides
    assert rows[4]["kl"] != rows[0]["kl"] == 0.0  # the second iteration's answers are of another policy
    names = [name for what, name in vllm.moves if what == "load"]
    assert len(set(names)) == 2
    assert all(re.fullmatch(f"align-{run.work.name[:8]}-[0-9a-f]{{12}}", name) for name in names)
    assert vllm.moves == adapter_moves(names)
    assert vllm.held == {}
    assert not list(run.work.glob("vllm/*"))
    asked = [question for question in endpoint.asked if "prompt" in question]
    assert [question["model"] for question in asked] == [names[0]] * 8 + [names[1]] * 8
    assert len({question["seed"] for question in asked}) == 16
    assert {(q["max_tokens"], q["min_tokens"], q["temperature"]) for q in asked} == {(6, 2, 0.8)}
    assert metrics["iterations"] == 2
    assert len([line for line in said if line.startswith("vLLM: ")]) == 2
    assert not any(KEY in line for line in said)


def test_the_folder_that_is_served_is_the_adapter_that_is_released(studio, base, serve):
    folders = []
    vllm = LoopbackVllm(base)

    def keep(asked, number):
        if "lora_path" in asked:
            folders.append(shutil.copytree(asked["lora_path"], studio.fresh("served") / "adapter"))
        return vllm(asked, number)

    with serve(keep, ROLE):
        out, _ = studio.practise(spec(**VLLM, iterations=1, learning_rate=1e-30), studio.sft("lora"))
    name = read_record(out).adapters[-1]
    [served] = folders
    assert sorted(file.name for file in served.iterdir()) == sorted(file.name for file in (out / "adapters" / name).iterdir())
    for file in served.iterdir():
        assert file.read_bytes() == (out / "adapters" / name / file.name).read_bytes()


@pytest.mark.parametrize("job", [grpo, rloo], ids=["grpo", "rloo"])
def test_groups_learn_from_answers_of_the_server(studio, base, serve, job):
    vllm = LoopbackVllm(base)
    with serve(vllm, ROLE) as endpoint:
        out, metrics = practise_group(studio, studio.run(), job=job)
    [row] = curve(out)
    assert row["sampler_gap"] < 1e-5
    assert metrics["first_step_kl"] == pytest.approx(0.0, abs=1e-6)
    asked = [question for question in endpoint.asked if "prompt" in question]
    assert len({question["seed"] for question in asked}) == len(asked) == 8
    assert len({tuple(question["prompt"]) for question in asked}) == 2  # four answers each
    assert [what for what, _ in vllm.moves] == ["load", "unload"]


@pytest.mark.slow
def test_a_child_is_told_where_the_server_is_and_writes_its_key_nowhere(studio, base, serve):
    vllm, said, out = LoopbackVllm(base), [], studio.fresh("out")
    run = studio.run(log=said.append, threads=1)
    with serve(vllm, ROLE) as endpoint:
        run_child("ppo", spec(**VLLM, iterations=1), studio.inputs(studio.sft("lora")), out, run)
    assert curve(out)[0]["sampler_gap"] < 1e-5
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    assert any(line.startswith("vLLM: ") for line in said)
    assert not any(KEY in line for line in said)
    files = [file for folder in (run.work, out) for file in tree(folder)]
    assert len(files) > 5
    assert not any(KEY.encode() in file.read_bytes() for file in files)


@pytest.mark.slow
def test_two_processes_share_the_server(studio, base, serve):
    vllm, out = LoopbackVllm(base), studio.fresh("out")
    fields = {
        "method": tiny.METHOD["lora"], "iterations": 2, "rollout_batch": 8, "global_batch": 8, "samples": 4, "max_new_tokens": 6,
        "max_length": 64, "learning_rate": 5e-3, "warmup": 0.0, **SHORT, **VLLM,
    }  # fmt: skip
    inputs = {"policy": studio.sft("lora"), "prompts": studio.shop.preferences}
    with serve(vllm, ROLE) as endpoint:
        metrics = run_child("grpo", GrpoSpec.model_validate(fields), inputs, out, studio.run(processes=2, threads=1))
    assert metrics["processes"] == 2
    assert all(row["sampler_gap"] < 1e-5 for row in curve(out))
    asked = [question for question in endpoint.asked if "prompt" in question]
    assert len({question["seed"] for question in asked}) == len(asked) == 16
    assert vllm.held == {}
    assert len({name for _, name in vllm.moves}) == 2
    assert vllm.moves == adapter_moves([name for what, name in vllm.moves if what == "load"])


# -- a server that serves something else


def test_a_server_with_another_base_stops_the_run_before_anything_is_learned(studio, serve, tmp_path):
    run = studio.run()
    other = tiny.write_model(tmp_path / "other", seed=1)
    with serve(LoopbackVllm(other), ROLE), pytest.raises(MachineError) as raised:
        studio.practise(spec(**VLLM), studio.sft("lora"), run=run)
    source = base_path(studio.shop.models, read_record(studio.shop.policy).base)
    words = str(raised.value)
    assert words.startswith("the vLLM server at 127.0.0.1 does not serve the model that is trained: its log-probabilities of 8 ")
    assert "nats per token off, where 0.1 is the most; it has another base, precision or adapter; start it by" in words
    assert words.endswith(f"`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {source} --enable-lora --max-lora-rank 8`")
    assert not list(run.work.glob("rollouts/*"))
    assert not (run.work / "training.json").exists()


def test_a_server_that_ignores_the_adapter_is_noticed_once_the_adapter_has_moved(studio, serve):
    run, policy = studio.run(), studio.sft()
    asked = spec(**VLLM, iterations=6, learning_rate=3e-2, warmup=0.0, kl={"coefficient": 0.0}, stop={"kl": None, "fall": None})
    with (
        serve(LoopbackVllm(policy / "model", deaf=True), ROLE),
        pytest.raises(MachineError, match="does not serve the model that"),
    ):
        studio.practise(asked, policy, run=run)
    rows = json.loads((run.work / "training.json").read_text())
    assert rows[0]["sampler_gap"] < 1e-5  # a fresh adapter changes nothing yet
    assert all(row["sampler_gap"] <= engines.GAP for row in rows)


def test_the_gap_is_measured_without_temperature_and_mask(studio, base, serve):
    """A server that gives the log-probabilities of what it sampled from, as `--logprobs-mode processed_logprobs` makes it."""
    vllm = LoopbackVllm(base)

    def processed(asked, number):
        status, body, headers = vllm(asked, number)
        if "logprobs" in asked:
            found = json.loads(body)
            told = found["choices"][0]["logprobs"]
            told["token_logprobs"] = [value - 0.2 for value in told["token_logprobs"]]
            body = json.dumps(found)
        return status, body, headers

    with serve(processed, ROLE), pytest.raises(MachineError, match=r"are 0\.2 nats per token off"):
        studio.practise(spec(**VLLM), studio.sft("lora"))


# -- what is written when, and what is not asked twice


def engine(studio, policy, run, **more):
    asked = spec(**VLLM, **more)
    begin = start(policy, asked, run)
    return engines.engine(asked, begin, Encoder(begin.loaded.tokenizer, begin.model), run, silent=0, rows=1), begin


def wanted(begin, count):
    encoder = Encoder(begin.loaded.tokenizer, begin.model)
    return [Ask(encoder.prompt([{"role": "user", "content": tiny.sentences(count)[i]}]), str(i)) for i in range(count)]


def test_the_same_weights_keep_their_name_and_others_get_another(studio, base, serve):
    vllm, done = LoopbackVllm(base), []
    with serve(vllm, ROLE):
        writer, begin = engine(studio, studio.sft("lora"), studio.run())
        asked = wanted(begin, 3)
        one = writer.answers(asked, lambda *given: done.append(given))
        assert writer.answers(asked, lambda *given: None) == one  # the seed decides, and so it would not be by chance
        assert [what for what, _ in vllm.moves] == ["load"]
        with torch.no_grad():
            next(p for name, p in begin.model.named_parameters() if "lora_B" in name).add_(0.05)
        writer.answers(asked, lambda *given: None)
        assert [what for what, _ in vllm.moves] == ["load", "unload", "load"]
        assert len({name for _, name in vllm.moves}) == 2
        writer.close()
        writer.close()
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert vllm.held == {}


def test_two_runs_that_begin_at_the_same_adapter_do_not_take_it_from_each_other(studio, base, serve):
    """Of other keys, and of one key in two stores."""
    vllm, policy = LoopbackVllm(base), studio.sft("lora")
    places = [studio.fresh("store") / ".work" / key for key in ("0123456789", "abcdefghij", "0123456789")]
    with serve(vllm, ROLE):
        (first, begin), *others = [engine(studio, policy, studio.run(work=place)) for place in places]
        asked = wanted(begin, 2)
        one = first.answers(asked, lambda *given: None)
        for other, _ in others:
            assert other.answers(asked, lambda *given: None) == one
            other.close()
            assert [*vllm.held] == [vllm.moves[0][1]]  # the first one's is still there, also in the middle of a rollout
        assert first.answers(asked, lambda *given: None) == one
        first.close()
    loaded = [name for what, name in vllm.moves if what == "load"]
    assert [name[: len("align-01234567")] for name in loaded] == ["align-01234567", "align-abcdefgh", "align-01234567"]
    assert len(set(loaded)) == 3
    assert vllm.held == {}


def test_what_a_run_before_it_left_behind_is_no_obstacle(studio, base, serve):
    """Killed with its adapter at the server and a folder half written, a run finds its adapter there by the same name."""
    vllm, run = LoopbackVllm(base), studio.run()
    with serve(vllm, ROLE):
        killed, begin = engine(studio, studio.sft("lora"), run)
        asked = wanted(begin, 2)
        one = killed.answers(asked, lambda *given: None)
        (run.work / "vllm" / "0" / "draft" / "adapter").mkdir(parents=True)
        (run.work / "vllm" / "0" / "align-0123456789ab").mkdir()
        again, _ = engine(studio, studio.sft("lora"), run)
        assert again.answers(asked, lambda *given: None) == one
        assert [path.name for path in (run.work / "vllm" / "0").iterdir()] == list(vllm.held)
        again.close()
    assert vllm.held == {}


def test_a_rollout_on_disk_is_not_asked_for_again_and_its_gap_is_kept(studio, base, serve):
    run, policy, vllm = studio.run(checkpoint_every=2), studio.sft("lora"), LoopbackVllm(base)
    with serve(vllm, ROLE) as endpoint:
        whole, _ = studio.practise(spec(**VLLM), policy, run=run)
        asked = len(endpoint.asked)
        for checkpoint in (run.work / "checkpoints").glob("checkpoint-8"):
            shutil.rmtree(checkpoint)
        assert newest_complete(run.work / "checkpoints", 1).name == "checkpoint-6"  # in the middle of the second iteration
        resumed, metrics = studio.practise(spec(**VLLM), policy, run=run)
        assert len(endpoint.asked) == asked
    assert metrics["resumed_at_step"] == 6
    assert curve(resumed) == curve(whole)


def test_an_error_in_one_answer_ends_the_rollout(studio, base, serve):
    vllm = LoopbackVllm(base)

    def reply(asked, number):
        return error(400, "the prompt is too long") if number == 5 else vllm(asked, number)

    with serve(reply, ROLE), pytest.raises(MachineError, match=r"refuses to answer .*the prompt is too long") as raised:
        studio.practise(spec(**VLLM), studio.sft("lora"))
    assert vllm.held == {}  # the adapter is dropped however it ends
    assert KEY not in str(raised.value)


# -- what is refused


@pytest.mark.parametrize("made", [PpoSpec, GrpoSpec, RlooSpec])
def test_vllm_is_part_of_the_key_and_what_was_made_without_it_keeps_its_own(made):
    fields = {"method": Lora(), "rewards": [{"rule": "finished"}]}
    assert "engine" not in canonical(made.model_validate(fields))
    assert canonical(made.model_validate(fields)) == canonical(made.model_validate({**fields, "engine": "transformers"}))
    assert json.loads(canonical(made.model_validate({**fields, **VLLM})))["engine"] == "vllm"


@pytest.mark.parametrize("made", [PpoSpec, GrpoSpec])
def test_methods_that_vllm_cannot_take_up_are_refused_by_name(made):
    for name in VLLM_METHODS:
        assert made.model_validate({"method": {"name": name}, **VLLM}).engine == "vllm"
    with pytest.raises(
        ValueError, match="plain LoRA adapters while it runs, and method dora leaves none; use one of lora, qlora, "
    ):
        made.model_validate({"method": {"name": "dora"}, **VLLM})
    with pytest.raises(ValueError, match=r"vLLM samples at temperatures of 0\.01 and more, and 0\.001 is asked for"):
        made.model_validate({"temperature": 0.001, **VLLM})


def test_full_training_is_no_adapter():
    with pytest.raises(ValueError, match=r"and method full leaves none; .* or engine: transformers"):
        GrpoSpec.model_validate({"method": {"name": "full"}, **VLLM})


def test_an_adapter_upon_another_one_is_refused_when_the_plan_is_loaded():
    for good in ([Lora(), Lora()], [Full(), Lora(rank=4)], [Lora(rank=4), Full(), Lora()], [Lora(), Lora(), Lora(dropout=0.1)]):
        check_served(good, None)
    for bad in ([Lora(rank=4), Lora()], [Dora(), Lora()], [RsLora(), Lora(), Lora()]):
        with pytest.raises(SpecError, match=r"the lora adapter would lie on the .* of another shape, and vLLM puts none below"):
            check_served(bad, None)
    with pytest.raises(SpecError, match="engine vllm: vLLM's GPT2LMHeadModel takes no LoRA; use engine: transformers"):
        check_served([Lora()], {"architectures": ["GPT2LMHeadModel"]})


def test_a_policy_that_vllm_would_not_serve_is_refused_before_it_is_asked(studio, serve, monkeypatch):
    with serve(lambda asked, number: error(500, "asked"), ROLE) as endpoint:
        merged = studio.practise(spec("rslora", iterations=1), studio.sft("lora"))[0]
        with pytest.raises(
            SpecError, match=r"ppo: engine vllm: the policy's adapter lies on another one \(0-sft\), and vLLM puts"
        ):
            studio.practise(spec("rslora", **VLLM), merged)
        monkeypatch.setattr("tasks.vllm_format._NO_LORA", frozenset({"LlamaForCausalLM"}))
        with pytest.raises(
            SpecError, match="ppo: engine vllm: vLLM would not serve the policy: vLLM's LlamaForCausalLM takes no"
        ):
            studio.practise(spec(**VLLM), studio.sft("lora"))
    assert endpoint.asked == []


def test_a_base_in_4_bits_is_served_in_4_bits(studio, serve):
    no_route = (404, '{"detail": "Not Found"}', {})
    how = r"has no route for adapters; start it by .* --quantization bitsandbytes --enable-lora --max-lora-rank 8`$"
    with serve(lambda asked, number: no_route, ROLE), pytest.raises(MachineError, match=how):
        studio.practise(spec("qlora", **VLLM), studio.sft("qlora"))


def test_a_server_that_is_down_or_unnamed_is_a_failed_machine(studio, free_port, monkeypatch):
    monkeypatch.setenv(ROLE.url, f"http://127.0.0.1:{free_port()}/v1")
    monkeypatch.setattr("tasks.vllm_server.TRIES", 1)
    with pytest.raises(MachineError, match=r"the vLLM server at 127.0.0.1 cannot be reached .*is it running") as raised:
        studio.practise(spec(**VLLM), studio.sft("lora"))
    assert raised.value.exit_code == 4
    monkeypatch.delenv(ROLE.url)
    with pytest.raises(MachineError, match="a vLLM server is asked for and ALIGN_VLLM_URL is not set"):
        studio.practise(spec(**VLLM), studio.sft("lora"))


def test_who_answers_is_the_model_itself_unless_the_plan_says_otherwise(studio):
    run = studio.run()
    begin = start(studio.sft("lora"), spec(), run)
    writer = engines.engine(spec(), begin, Encoder(begin.loaded.tokenizer, begin.model), run, silent=0, rows=1)
    assert isinstance(writer, TransformersEngine)
    assert writer.gap is None
    assert not (run.work / "vllm").exists()

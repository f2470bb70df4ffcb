"""A vLLM server over HTTP: what exactly is asked of it, what its replies mean, and refusals in one sentence without the key."""

import json
import threading

import pytest
from endpoint import KEY

from tasks.core.errors import MachineError
from tasks.vllm_server import ROLE, Sampling, VllmServer, Written

START = "vllm serve /base --enable-lora --max-lora-rank 16"
SAMPLING = Sampling(temperature=0.7, new_tokens=4, silent=1, stops={9, 2})


def answer(tokens, logps=None):
    choice = {"index": 0, "text": "x", "logprobs": logps and {"token_logprobs": logps}, "finish_reason": "stop"}
    return 200, json.dumps({"choices": [choice | ({} if tokens is None else {"token_ids": tokens})]}), {}


def server(endpoint, tries=3):
    return VllmServer(endpoint.url, KEY, start=START, tries=tries, pause=0.0)


def test_an_answer_is_asked_for_with_every_field_that_decides_it(serve):
    with serve(lambda asked, number: answer([5, 6, 9], [-1.0, -2, -0.5] if number == 2 else None), ROLE) as endpoint:
        written = [server(endpoint).write("align-1", [3, 4], SAMPLING, seed=2**63 - 1, logps=logps) for logps in (False, True)]
    assert written == [Written([5, 6, 9], []), Written([5, 6, 9], [-1.0, -2, -0.5])]
    fields = {
        "model": "align-1", "prompt": [3, 4], "seed": 2**63 - 1, "temperature": 0.7, "max_tokens": 4, "min_tokens": 1,
        "stop_token_ids": [2, 9], "ignore_eos": True, "return_token_ids": True, "skip_special_tokens": False, "top_p": 1.0,
        "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "n": 1,
    }  # fmt: skip
    assert endpoint.asked == [fields, {**fields, "logprobs": 1}]
    assert set(endpoint.paths) == {"/v1/completions"}
    assert set(endpoint.keys) == {f"Bearer {KEY}"}


def test_an_adapter_is_taken_up_once_and_dropped_without_a_fuss(serve, tmp_path):
    said = [
        (200, "Success", {}),
        (400, '{"error": {"message": "The lora adapter \'a\' has already been loaded. If you want"}}', {}),
        (400, '{"message": "The lora adapter \'a\' has already been loaded."}', {}),  # as older ones say it
        (200, "Success", {}),
        (404, '{"error": {"message": "The lora adapter \'a\' cannot be found."}}', {}),
        (500, '{"error": {"message": "Failed to remove lora adapter"}}', {}),
        (503, "gone", {}),
    ]
    with serve(lambda asked, number: said[number - 1], ROLE) as endpoint:
        for _ in range(3):
            server(endpoint).load("a", tmp_path)
        dropped = [server(endpoint).unload("a") for _ in range(4)]
    assert endpoint.asked == [{"lora_name": "a", "lora_path": str(tmp_path)}] * 3 + [{"lora_name": "a"}] * 4
    assert endpoint.paths == ["/v1/load_lora_adapter"] * 3 + ["/v1/unload_lora_adapter"] * 4
    assert dropped[:2] == [None, None]
    assert dropped[2] == 'HTTP 500: {"error": {"message": "Failed to remove lora adapter"}}'
    assert "is busy or broken (HTTP 503: gone)" in dropped[3]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((404, '{"detail": "Not Found"}', {}), "has no route for adapters"),
        (
            (404, '{"error": {"message": "No adapter found for /x"}}', {}),
            r"does not take up the adapter in /x \(HTTP 404: .*No adap",
        ),
        (
            (500, '{"error": {"message": "LoRA rank 64 is greater"}}', {}),
            r"take up the adapter in /x \(HTTP 500: .*rank 64 is gre",
        ),
    ],
)
def test_a_server_that_takes_no_adapter_is_told_how_it_is_started(serve, reply, says):
    how = f"; start it by `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True {START}`"
    with serve(lambda asked, number: reply, ROLE) as endpoint, pytest.raises(MachineError, match=says) as raised:
        server(endpoint).load("a", "/x")
    assert str(raised.value).endswith(how)
    assert len(endpoint.asked) == 1  # what will not change is not tried again


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((400, f"no such key {KEY}", {}), r"refuses to answer \(HTTP 400: no such key <ALIGN_VLLM_KEY>\)"),
        ((200, "<html>", {}), "does not reply as vLLM does: <html>"),
        ((200, '{"choices": []}', {}), "does not reply as vLLM does"),
        (answer(None), r"does not return the tokens of its answers; it must be vLLM 0\.10\.2 or later"),
        (answer([]), "sent an answer that is no list of tokens"),
        (answer([5, "6", 9]), "sent an answer that is no list of tokens"),
        (answer([5, 6, 7, 8, 9]), "sent an answer of 5 tokens where 4 were the limit"),
        (answer([5, 6, 7]), "sent an answer of 3 tokens that ends neither in a stop token nor at the limit of 4"),
        (answer([5, 9, 7, 2]), "sent an answer that goes on after a stop token"),
        (answer([9]), "sent an answer that stops after 0 tokens where 1 were due"),
        (answer([5, 9]), "sent an answer without a log-probability of each token"),
        (answer([5, 9], [-1.0]), "sent an answer without a log-probability of each token"),
        ((200, '{"choices": [{"token_ids": [5, 9], "logprobs": [-1.0, -1.0]}]}', {}), "does not reply as vLLM does"),
        (answer([5, 9], [-1.0, None]), "sent an answer without a log-probability of each token"),
    ],
)
def test_what_is_no_answer_is_one_sentence_without_the_key(serve, reply, says):
    with serve(lambda asked, number: reply, ROLE) as endpoint, pytest.raises(MachineError, match=says) as raised:
        server(endpoint).write("a", [3], SAMPLING, seed=0, logps=True)
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_busy_server_is_asked_again_and_one_that_is_down_is_a_machine_error(serve, free_port):
    def reply(asked, number):
        return (503, "slow down", {"Retry-After": "0"}) if number < 3 else answer([5, 9])

    with serve(reply, ROLE) as endpoint:
        assert server(endpoint).write("a", [3], SAMPLING, seed=0).tokens == [5, 9]
        assert len(endpoint.asked) == 3
    down = VllmServer(f"http://127.0.0.1:{free_port()}/v1", KEY, pause=0.0)
    with pytest.raises(
        MachineError, match=r"^the vLLM server at 127.0.0.1 cannot be reached \(connection refused\).*VLLM_URL right\?"
    ):
        down.load("a", "/x")


def test_a_server_that_hangs_is_asked_once_and_said_so(serve, monkeypatch):
    monkeypatch.setattr("tasks.vllm_server._PATIENCE", 0.3)
    monkeypatch.setattr("tasks.vllm_server._PARTING", 0.2)
    goes_on = threading.Event()
    with serve(lambda asked, number: goes_on.wait(60) and answer([5, 9]), ROLE) as endpoint:
        try:
            with pytest.raises(MachineError) as raised:
                server(endpoint).write("a", [3], SAMPLING, seed=0)
            kept = server(endpoint).unload("a")
        finally:
            goes_on.set()
    said = "the vLLM server at 127.0.0.1 took the question and did not reply in {} s; does it hang? see its log"
    assert (str(raised.value), kept) == (said.format(0.3), said.format(0.2))
    assert sorted(endpoint.paths) == ["/v1/completions", "/v1/unload_lora_adapter"]


def test_a_server_that_hangs_up_is_asked_again(serve):
    def reply(asked, number):
        if number == 1:
            raise ConnectionAbortedError("this handler ends without a reply")
        return answer([5, 9])

    with serve(reply, ROLE) as endpoint:
        assert server(endpoint).write("a", [3], SAMPLING, seed=0).tokens == [5, 9]
    assert len(endpoint.asked) == 2


def test_a_server_that_nobody_named_is_said_so(monkeypatch):
    monkeypatch.delenv("ALIGN_VLLM_URL", raising=False)
    with pytest.raises(MachineError, match="a vLLM server is asked for and ALIGN_VLLM_URL is not set; name an endpoint"):
        VllmServer.from_environment()
    monkeypatch.setenv("ALIGN_VLLM_URL", "http://me:pw@host/v1")
    with pytest.raises(MachineError, match="ALIGN_VLLM_URL is no address") as raised:
        VllmServer.from_environment()
    assert "pw" not in str(raised.value)

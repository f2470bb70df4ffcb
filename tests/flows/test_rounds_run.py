"""Rounds of online DPO by the real command line: a reward model, a rule and a judge, to a release; then one round afresh."""

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from smoke import Smoke, ended, write_smoke

KEY = "sk-secret-of-the-judge-987654"
PLAN = """
name: smoke
model: {base: ./tiny}
data:
  instructions: {sources: [instructions.jsonl], heldout: 0.3}
  preferences: {sources: [preferences.jsonl], heldout: 0.4}
  prompts: {sources: [prompts.jsonl]}
sft: {max_steps: 2, global_batch: 4, max_length: 1024, method: {name: full}}
reward: {max_steps: 2, global_batch: 4, max_length: 1024}
policy:
  algorithm: online_dpo
  method: {name: full}
  rounds: 2
  prompts: 8
  samples: 3
  max_new_tokens: 8
  max_steps: 2
  global_batch: 4
  max_length: 1024
  rewards:
    - {rule: reward_model}
    - {rule: length, unit: characters, at_least: 60, weight: 2.0}
    - {rule: judge, model: judge-7b, weight: 0.5}
health: {answers: 4, accept_weak: true}
evaluation: {answers: {max_new_tokens: 4}}
gates:
  - {metric: answer_perplexity_ratio, at_most: 3}
release: {channel: champion}
execution: {device: cpu, parallel: 2, threads: 1}
"""
STAGES = ("answers", "rewards", "judging", "pairs", "curate", "dpo")


class _Judge(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == f"Bearer {KEY}"
        self.server.asked += 1
        score = 1 + len(json.loads(asked["messages"][1]["content"])["answer"]) % 10
        body = json.dumps({"choices": [{"message": {"content": f"Score: {score}"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def judge():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Judge)
    server.asked = 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass(frozen=True)
class Judged(Smoke):
    url: str = ""

    @property
    def environment(self):
        return super().environment | {"ALIGN_JUDGE_URL": self.url, "ALIGN_JUDGE_KEY": KEY, "NO_PROXY": "127.0.0.1"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_rounds_run_to_a_release_and_one_is_built_afresh(tmp_path, judge, prefect_server):
    plain = write_smoke(tmp_path / "smoke", prefect_server)
    smoke = Judged(plain.folder, plain.server, f"http://127.0.0.1:{judge.server_address[1]}/v1")
    (smoke.folder / "plan.yaml").write_text(PLAN)
    of_rounds = [f"{stage}-round-{number}" for number in (1, 2) for stage in STAGES]
    planned = smoke.states()
    assert [name for name in planned if "-round-" in name] == of_rounds
    assert judge.asked == 0

    built = ended(smoke.align("run", "plan.yaml"))
    assert {built[name] for name in of_rounds} == {"built"}
    assert judge.asked == 2 * 8 * 3
    assert set(smoke.states().values()) == {"built"}
    keys = smoke.keys()
    first, second = (manifest(smoke, "policy", keys[f"dpo-round-{number}"]) for number in (1, 2))
    assert second["identity"]["inputs"]["policy"] == first["digest"]
    released = json.loads((smoke.store / "release" / keys["release"] / "release.json").read_text())
    assert {keys[name] for name in of_rounds} <= {part["key"] for part in released["lineage"]}
    assert [link["stage"] for link in released["chain"]] == ["sft", "dpo", "dpo"]

    assert "up to date" in smoke.align("run", "plan.yaml")
    again = ended(smoke.align("rerun", "dpo-round-2", "plan.yaml"))
    assert again.pop("dpo-round-2") == "built"
    assert set(again.values()) == {"cached"}  # equal bytes: nothing after it is built again
    assert judge.asked == 2 * 8 * 3

    weighed = smoke.states("--set", "policy.rewards.2.weight=0.25")
    assert [weighed[f"{stage}-round-1"] for stage in STAGES] == ["built", "built", "built", "missing", "waits", "waits"]
    files = [file for file in smoke.store.rglob("*") if file.is_file()]
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def manifest(smoke, kind, key):
    return json.loads((smoke.store / kind / key / "manifest.json").read_text())

"""What a plan builds from what, without building anything."""

from flows.pipeline import pipeline


def laid_out(plan, of=pipeline) -> dict[str, dict[str, str]]:
    """Stage -> its inputs by name, in the order in which they are asked for."""
    found = {}

    def build(stage, spec, inputs, *, name=None):
        found[name or stage.name] = {key: str(value) for key, value in inputs.items()}
        return name or stage.name

    of(plan, build)
    return found

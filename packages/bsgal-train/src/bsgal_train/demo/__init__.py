"""The whole loop on built-in data: from prompts to a table and a report page."""

from bsgal_train.demo.settings import DemoSettings

__all__ = ["DemoSettings", "run_demo"]


def __getattr__(name: str) -> object:
    # The loop needs torch, diffusers and detectron2; its settings and stages do not.
    if name == "run_demo":
        from bsgal_train.demo.loop import run_demo

        return run_demo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

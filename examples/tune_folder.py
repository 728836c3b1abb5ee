"""A run in Python: look at the plan, stop if nothing is to be expected of it, tune, draw, release, verify.

    python examples/tune_folder.py run.yaml
    python examples/tune_folder.py run.yaml --anyway --epsilon 4

`run.yaml` is a config as `dpldm inspect --write run.yaml` starts one. The same line goes on after an interruption.
"""

import argparse
from pathlib import Path

from dpldm import RunConfig, finetune, load_config, plan, release, sample, verify
from dpldm.outlook import Verdict


def main() -> None:
    """From a config to a verified release."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--anyway", action="store_true", help="run a plan that is not expected to learn")
    parser.add_argument("--epsilon", help="in place of the config's")
    given = parser.parse_args()
    config = load_config(RunConfig, given.config, [("privacy.epsilon", given.epsilon)] if given.epsilon else [])

    forecast = plan(config)  # opens no image, spends nothing
    print(f"epsilon {forecast.epsilon:.2f}, about {forecast.seconds:.0f} s before images are drawn")
    print(f"{forecast.outlook.verdict}: {forecast.outlook.reason}")
    if forecast.outlook.verdict is Verdict.NO and not given.anyway:
        raise SystemExit("\n".join(["instead:", *forecast.outlook.alternatives]))

    for step in finetune(config):  # what a step shows is public; portraits have none
        print(f"update {step.number} of {step.steps}, epsilon {step.epsilon_spent:.2f}")
    for drawn in sample(config):
        print(f"{drawn.done} of {drawn.count} images")
    released = release(
        config, "data" if config.method == "portraits" else "both"
    )  # images, and the model that was tuned
    failed = [check for check in verify(released) if not check.passed]
    print(f"{released}: {len(failed)} failed checks")


if __name__ == "__main__":
    main()

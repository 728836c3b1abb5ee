"""What is a release worth to you? Verify it, then train classifiers on it alone and test them on your own real images.

    python examples/measure.py runs/run/release my-test-images

`my-test-images` is whatever `dpldm inspect` reads, with the classes of the release.
"""

import argparse
from pathlib import Path

from dpldm import RunConfig, evaluate_foreign, verify
from dpldm.verdict import Verdict, verdict
from dpldm.verifying import read_statement


def main() -> None:
    """Print accuracies and distances; they are about the real images, so keep them where those are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("test", type=Path, help="real images, which nothing was tuned on")
    parser.add_argument("--protocol", default="quick", help="see docs/evaluation.md (quick)")
    given = parser.parse_args()

    found = verdict(verify(given.release))
    print(found.sentence)
    if found is not Verdict.VERIFIED:
        raise SystemExit(found.exit_code)

    declared = read_statement(given.release)["declared_constants"]
    config = RunConfig.model_validate(
        {
            "name": "measured",
            "data": {
                "path": str(given.release),  # not read here
                "test_path": str(given.test),
                "image_size": declared["image_size"],
                "channels": declared["channels"],
                "labels": declared["labels"],
            },
            "privacy": {"dataset_id": "measured"},
            "evaluation": {"protocol": given.protocol},
        }
    )
    result = evaluate_foreign(config, given.release / "synthetic")
    if result.utility is not None:
        for kind, score in result.utility.scores.items():
            print(f"{kind}: {score.mean:.1%} of real images recognised")
    for distance in result.distances:
        print(f"{distance.label}: {distance.value:.3g}")


if __name__ == "__main__":
    main()

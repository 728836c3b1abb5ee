"""Write results/README.md from the manifests beside it: python tools/results.py"""

from pathlib import Path

from dpldm.reproduction.page import results_page


def main() -> None:
    folder = Path("results")
    (folder / "README.md").write_text(results_page(folder), encoding="utf-8")


if __name__ == "__main__":
    main()

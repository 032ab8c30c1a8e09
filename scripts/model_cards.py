"""Keep the cards of finished runs: `python scripts/model_cards.py runs/demo/digits_gft runs/toy_mle` renews model_cards/digits_gft and toy_mle."""

import shutil
import sys
from pathlib import Path

import yaml

from hf_flowft.cards import write_card
from hf_flowft.hub import read_config
from hf_flowft.results import published, read_results, write_json


def keep_card(run_folder: Path, folder: Path) -> None:
    """Render a run's card anew, with what it is made from beside it."""
    results, config = published(read_results(run_folder / "results.json")), read_config(run_folder)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run_folder / "figures", folder / "figures")
    write_json(folder / "results.json", results)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_card(results, config, folder)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        keep_card(Path(name), Path("model_cards") / Path(name).name)

"""Annotate: a teacher's maps where nobody annotated, as a data set that the other commands take."""

import numpy as np
import pytest

from hf_salguide import load_saliency_dataset
from hf_salguide.cli import main
from hf_salguide.cli.common import load_model
from hf_salguide.data.prepare import undecoded
from hf_salguide.studies.pseudo_saliency import pseudo_saliency

from .helpers import table_of, train_on


def test_what_is_written_is_loaded_and_trained_on(folder, model, tmp_path, capsys):
    output = tmp_path / "annotated"
    assert main(["annotate", str(folder), "--model", str(model), "--output_dir", str(output)]) == 0
    printed = capsys.readouterr().out
    given, written = load_saliency_dataset(folder), load_saliency_dataset(output)
    assert list(written) == list(given)
    expected = pseudo_saliency(load_model(str(model)), given["train"], progress=False)
    assert "teacher" in expected["saliency_source"][:]
    for name in given:
        rows = [row for row in table_of(folder) if row["split"].startswith(name[:3])]
        assert written[name]["file_name"][:] == [row["file_name"] for row in rows]
        assert written[name].features["label"].names == given[name].features["label"].names
        pictures = undecoded(written[name])[:]["image"]
        assert [value["bytes"] for value in pictures] == [(folder / row["file_name"]).read_bytes() for row in rows]
        human = [source == "human" for source in written[name]["saliency_source"]]
        assert human == [bool(row["mask_file_name"]) for row in rows]
        counts = [written[name]["saliency_source"][:].count(source) for source in ("human", "teacher", None)]
        line = next(line for line in printed.splitlines() if line.startswith(f"| {name} "))
        assert [int(cell) for cell in line.split("|")[2:5]] == counts
    assert written["train"]["saliency_source"][:] == expected["saliency_source"][:]
    assert "teacher" not in written["ood"]["saliency_source"][:]
    for met, row in zip(written["train"], expected, strict=True):
        if row["saliency"] is None:
            assert met["saliency"] is None
        else:
            assert np.array_equal(np.asarray(met["saliency"]), np.asarray(row["saliency"]))
    assert train_on(tmp_path, output, guidance="cyborg") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", "{full}"], 'output_dir="{full}" is not empty; name a new folder.'),
        (["--splits", "tain"], 'splits="tain" is not a split of the data'),
        (["--method", "rise"], "method='rise' is not known"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, message, folder, model, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "metadata.csv").write_text("kept")
    filled = [part.format(full=full) for part in ["--output_dir", "{full}/new", *arguments]]
    assert main(["annotate", "--data", str(folder), "--model", str(model), *filled]) == 2
    assert message.format(full=full) in capsys.readouterr().err
    assert [path.name for path in full.iterdir()] == ["metadata.csv"]

import csv
import json

import pytest

from results.tables.export import EXPORTERS, export_assignment
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError, JobError

ASSIGNMENT = BitAssignment(
    "search-1",
    ModelReference("zoo:resnet20", (3, 32, 32)),
    {"conv1": LayerBits(8, 8), "a,b": LayerBits(0, 0), "fc": LayerBits(2, 4, 5, (0, 2, 4, 6, 8))},
    cost={"size_bytes": 100},
)


def test_json_reads_back_as_the_same_assignment(tmp_path):
    export_assignment(ASSIGNMENT, "json", tmp_path / "a.json")
    assert BitAssignment.loads((tmp_path / "a.json").read_text()) == ASSIGNMENT
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == "dnas.assignment/1"


def test_csv_has_one_line_per_layer_in_order(tmp_path):
    export_assignment(ASSIGNMENT, "csv", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["layer", "weight_bits", "activation_bits", "out_channels", "kept_channels"],
            ["conv1", "8", "8", "", ""],
            ["a,b", "0", "0", "", ""],
            ["fc", "2", "4", "5", "0 2 4 6 8"],
        ]


def test_an_unknown_format_is_told_with_the_list(tmp_path):
    with pytest.raises(InputError, match=r"unknown format 'jsn'; choose one of json, csv.*; did you mean 'json'\?"):
        export_assignment(ASSIGNMENT, "jsn", tmp_path / "a")


@pytest.mark.parametrize("format", EXPORTERS)
def test_every_exporter_replaces_whole_files_and_tells_what_it_cannot_write(tmp_path, format):
    path = tmp_path / "a"
    path.write_text("old")
    export_assignment(ASSIGNMENT, format, path)
    assert path.read_text() != "old"
    with pytest.raises(JobError, match="cannot write"):
        export_assignment(ASSIGNMENT, format, tmp_path / "nowhere" / "a")

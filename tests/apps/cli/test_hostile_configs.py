"""Configs that ask for more than a model can have: refused in a moment, before anything is built."""

import json
import shutil

import pytest

from ...models import SHAPES_JANUS, SHAPES_VL2

INSPECT = """
import json, time
from bifrons.apps.cli.inspect import inspect_model
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.pipeline import VL2Pipeline
import timm.models.vision_transformer
source = Path(sys.argv[2])
pristine = (source / "config.json").read_text()
pipeline = JanusPipeline if "multi_modality" in pristine else VL2Pipeline
for change in json.loads(sys.argv[3]):
    config = json.loads(pristine)
    *path, last, value = change
    section = config
    for name in path:
        section = section.setdefault(name, {})
    section[last] = value
    (source / "config.json").write_text(json.dumps(config))
    start = time.process_time()
    report = inspect_model(str(source))
    try:
        pipeline.from_pretrained(source, device="cpu")
        print(json.dumps(change))
    except BifronsError:
        assert not report["sound"], change
    seconds = time.process_time() - start
    assert seconds < 3, (change, seconds)
"""

JANUS = [
    ["language_config", "num_hidden_layers"],
    ["language_config", "hidden_size"],
    ["language_config", "intermediate_size"],
    ["language_config", "num_attention_heads"],
    ["language_config", "vocab_size"],
    ["language_config", "max_position_embeddings"],
    ["vision_config", "params", "layers"],
    ["vision_config", "params", "width"],
    ["vision_config", "params", "image_size"],
    ["vision_config", "params", "model_name"],
    ["aligner_config", "params", "depth"],
    ["gen_aligner_config", "params", "depth"],
    ["gen_head_config", "params", "image_token_embed"],
    ["gen_vision_config", "params", "image_token_size"],
    ["gen_vision_config", "params", "n_embed"],
    ["gen_vision_config", "params", "ch"],
    ["gen_vision_config", "params", "ch_mult"],
    ["gen_vision_config", "params", "z_channels"],
    ["gen_vision_config", "params", "num_res_blocks"],
    ["model_type"],
    ["language_config"],
]
VL2 = [
    *JANUS[:6],
    ["language_config", "n_routed_experts"],
    ["language_config", "moe_intermediate_size"],
    ["language_config", "n_shared_experts"],
    ["language_config", "topk_method"],
    ["vision_config", "layers"],
    ["vision_config", "width"],
    ["vision_config", "mlp_ratio"],
    ["vision_config", "model_name"],
    ["projector_config", "depth"],
    ["projector_config", "downsample_ratio"],
    ["candidate_resolutions"],
]
VALUES = [10**5, 10**9, 2**63, 2**70, -1, 0, 1.5, "1", [1], {"a": 1}, [[10**9, 10**9]] * 3]
PLAUSIBLE = [256, 1024]


@pytest.mark.parametrize(
    ("model", "paths", "sound"),
    [
        (SHAPES_JANUS, JANUS, [["vision_config", "params", "model_name", "1"]]),
        (SHAPES_VL2, VL2, [["language_config", "hidden_size", 256], ["vision_config", "model_name", "1"]]),
    ],
)
def test_implausible_settings_are_refused_before_a_model_is_built(tmp_path, model, paths, sound, run_bounded):
    """Memory: 600 MB beside the imports, for all of them in one process; time: 3 s of CPU each at most."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    harmless = ("max_position_embeddings", "image_size", "downsample_ratio")
    cases = [
        [*path, value]
        for path in paths
        for value in VALUES + PLAUSIBLE
        if not (path[-1] in harmless and isinstance(value, int) and 0 < value <= 10**6)
    ]
    printed = run_bounded(INSPECT, folder, json.dumps(cases), memory=600 << 20, seconds=500)
    assert [json.loads(line) for line in printed.splitlines()] == sound


def test_more_layers_than_the_files_hold(tmp_path, run_bounded):
    folder = tmp_path / "model"
    shutil.copytree(SHAPES_VL2, folder)
    config = json.loads((folder / "config.json").read_text())
    layers = config["language_config"]["num_hidden_layers"]
    config["language_config"]["num_hidden_layers"] = layers + 1
    (folder / "config.json").write_text(json.dumps(config))
    code = """
from bifrons.apps.cli.inspect import inspect_model
print(inspect_model(sys.argv[2])["errors"])
"""
    printed = run_bounded(code, folder)
    assert (
        f"has {layers + 1} language.model.layers, but the weights have {layers}; accepted: as many" in printed
    )


def test_names_from_files_are_escaped(tmp_path, bifrons_main, capsys):
    folder = tmp_path / "model"
    shutil.copytree(SHAPES_VL2, folder)
    (folder / "a\x1b[31m\x9b\u202e\n.txt").touch()
    (folder / "link.txt").symlink_to("b" * 300)
    for options in ((), ("--json",)):
        assert bifrons_main("info", folder, *options) == 0
        printed = capsys.readouterr().out
        assert "a\\u001b[31m\\u009b\\u202e\\n.txt" in printed
        assert not {"\x1b", "\x9b", "\u202e"} & {*printed}
    assert json.loads(printed)["sound"]
    assert bifrons_main("info", "b" * 300) == 1
    assert "no folder 'bbb" in capsys.readouterr().err

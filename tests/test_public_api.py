"""Public names and their parameters, which users' code depends on."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import atm_triton

PUBLIC = {
    "atm_triton": {
        "ActiveTokenMixer": "dim share out_dim own_offset proj_drop axes",
        "ActiveTokenMixer1d": "dim share out_dim own_offset proj_drop",
        "ActiveTokenMixer2d": "dim share out_dim own_offset proj_drop",
        "ActiveTokenMixer3d": "dim share out_dim own_offset proj_drop",
        "OffsetFC": "dim share eps axes",
        "Report": "changed left parameters_before parameters_after macs_before macs_after options",
        "axial_gather": "x offset axis",
        "backend_info": "device dtype",
        "branch_fusion": "w h c logits t",
        "offset_fc": "x norm_weight norm_bias weight bias eps",
        "swap": "model target share grid dense start converters example",
        "token_mix": "x offset weight_w bias_w weight_h bias_h weight_c fc1_weight fc1_bias fc2_weight fc2_bias proj_weight proj_bias "
        "weight_t bias_t",
        "tune": "model example_inputs backward force export progress",
        "unswap": "model",
    },
    "atmnet": {
        "ATMFPN": "in_channels dim",
        "FPN": "in_channels dim",
        "VARIANTS": None,  # not a function
        "ATMNet": "in_chans num_classes global_pool depths dims mlp_ratios share period peg offsets time frames tubelet drop_rate "
        "proj_drop_rate drop_path_rate device dtype",
        "ATMNetFeatures": "model out_indices kwargs",
        "Backbone": "name kwargs",
        "as_layers": "model",
        "canonical_name": "model",
        "create_detector": "backbone detector neck num_classes min_size max_size dim rois_per_image backbone_kwargs",
        "create_segmenter": "backbone head neck num_classes kwargs",
        "inflate": "video image",
        "load": "model path",
        "load_official": "model path_or_state_dict ema",
        "open_classifier": "checkpoint model ema swap",
        "open_detector": "checkpoint model ema swap",
        "open_model": "checkpoint model ema swap",
        "open_segmenter": "checkpoint model ema swap",
        "predict": "model image top threshold tile overlap multi_scale",
        "predict_video": "model path every top threshold tile overlap multi_scale",
        "push_to_hub": "model repo_id license private token kwargs",
        "save": "model path metadata",
        "save_pretrained": "model folder license",
    },
}
ADVICE = "Public names are promises: where this change is meant, write it here and in CHANGELOG.md, and keep what users' code calls."


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names(package: str) -> None:
    found, known = set(import_module(package).__all__), set(PUBLIC[package])
    assert found == known, f"{package}.__all__: new {sorted(found - known)}, gone {sorted(known - found)}. {ADVICE}"


@pytest.mark.parametrize("package,name", [(package, name) for package, names in PUBLIC.items() for name in names if names[name]])
def test_parameters(package: str, name: str) -> None:
    found = " ".join(inspect.signature(getattr(import_module(package), name)).parameters)
    assert found == PUBLIC[package][name], f"{package}.{name} takes ({found}), and took ({PUBLIC[package][name]}). {ADVICE}"


def test_the_version_is_the_same_everywhere() -> None:
    root = Path(__file__).parents[1]
    assert re.findall(r"^## (\S+)", (root / "CHANGELOG.md").read_text(), re.M)[0] == atm_triton.__version__
    assert f"\nversion: {atm_triton.__version__}\n" in (root / "CITATION.cff").read_text()

import pathlib
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import DeployError, ModelError
from pipeline.models.weights import load_weights, save_weights
from pipeline.models.zoo import create_model


class Payload:
    """Unpickled by the standard unpickler, this creates a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (pathlib.Path.touch, (self.target,))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


def resnet(classes=10):
    return create_model("wgates:resnet20a", classes)


def assert_same(left, right):
    for key, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[key]), key


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path, zipped):
    touched, file = tmp_path / "touched", tmp_path / "weights.pt"
    content = {"conv1.weight": Payload(touched)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="holds code, not only tensors; it was not executed"):
        load_weights(resnet(), file)
    assert not touched.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_bare_pickle_is_refused_and_not_executed(tmp_path, protocol):
    touched, file = tmp_path / "touched", tmp_path / "weights.pkl"
    file.write_bytes(pickle.dumps(Payload(touched), protocol=protocol))
    with pytest.raises(ModelError, match="it was not executed") as failure:
        load_weights(resnet(), file)
    assert not touched.exists()
    assert "safetensors" in failure.value.fix
    pickle.loads(file.read_bytes())
    assert touched.exists()  # the payload was live


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(resnet(), tmp_path / "model.pt")
    with pytest.raises(ModelError, match="holds code"):
        load_weights(resnet(), tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["empty", "half", "noise"])
def test_damaged_files_are_refused(tmp_path, suffix, damage):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(resnet().state_dict(), file)
    else:
        save_weights(resnet(), file)
    whole = file.read_bytes()
    file.write_bytes(
        {"empty": b"", "half": whole[: len(whole) // 2], "noise": b"noise" * 99}[damage]
    )
    with pytest.raises(ModelError, match="truncated or no weights file"):
        load_weights(resnet(), file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no weights file .*absent\.pt"):
        load_weights(resnet(), tmp_path / "absent.pt")


def test_save_and_load_give_the_same_tensors(tmp_path):
    saved, loaded = resnet(), resnet()
    save_weights(saved, tmp_path / "new folder" / "weights.safetensors")
    load_weights(loaded, tmp_path / "new folder" / "weights.safetensors")
    assert_same(saved, loaded)
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    ],
)
def test_wrappers_and_the_module_prefix_are_taken_off(tmp_path, wrap):
    saved, loaded = resnet(), resnet()
    torch.save(wrap(saved.state_dict()), tmp_path / "checkpoint.pt")
    load_weights(loaded, tmp_path / "checkpoint.pt")
    assert_same(saved, loaded)


def test_a_prefix_that_is_the_models_own_stays(tmp_path):
    saved = nn.Sequential()
    saved.add_module("module", nn.Linear(2, 2))
    loaded = nn.Sequential()
    loaded.add_module("module", nn.Linear(2, 2))
    save_weights(saved, tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors")
    assert_same(saved, loaded)


def test_missing_batch_counters_are_no_mismatch(tmp_path):
    saved, loaded = resnet(), resnet()
    state = saved.state_dict()
    save_file(
        {key: value for key, value in state.items() if "num_batches" not in key},
        tmp_path / "weights.safetensors",
    )
    load_weights(loaded, tmp_path / "weights.safetensors")
    assert_same(saved, loaded)


def test_other_keys_are_counted_and_the_first_named(tmp_path):
    save_weights(resnet(), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError) as failure:
        load_weights(create_model("wgates:resnet20", 10), tmp_path / "weights.safetensors")
    assert "10 missing: layer2.0.shortcut.0.weight" in failure.value.message
    assert "and 7 more" in failure.value.message
    assert "wgates:resnet20a" in failure.value.fix
    save_weights(create_model("wgates:resnet20", 10), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"12 unexpected: layer2\.0\.shortcut\.0\.weight"):
        load_weights(resnet(), tmp_path / "weights.safetensors")


def test_another_shape_is_given_both_ways_and_changes_nothing(tmp_path):
    state = {key: value.clone() for key, value in resnet().state_dict().items()}
    state["conv1.weight"] = torch.zeros(12, 3, 3, 3)
    save_weights(state, tmp_path / "weights.safetensors")
    model = resnet()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError) as failure:
        load_weights(model, tmp_path / "weights.safetensors")
    text = "1 of another shape: conv1.weight: (12, 3, 3, 3) in the file, (16, 3, 3, 3) in the model"
    assert text in failure.value.message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_number_of_classes_has_its_own_words(tmp_path):
    save_weights(resnet(10), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="'linear' has 10 outputs, the data has 7 classes"):
        load_weights(resnet(7), tmp_path / "weights.safetensors")


def test_another_feature_width_is_not_called_a_class_mismatch(tmp_path):
    save_weights(nn.Sequential(nn.Linear(4, 3)), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="of another shape"):
        load_weights(nn.Sequential(nn.Linear(5, 2)), tmp_path / "weights.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, value):
    model = resnet()
    model.layer2[1].bn1.running_var[3] = value
    save_weights(model, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"layer2\.1\.bn1\.running_var holds NaN or infinite"):
        load_weights(resnet(), tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(2)], "holds a list, not a state dict"),
        ({}, "holds nothing, not a state dict"),
        ({"weight": torch.zeros(2), "epoch": 3}, "1 entries that are no tensors: epoch"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=reason):
        load_weights(resnet(), tmp_path / "weights.pt")


def test_tied_and_transposed_tensors_are_saved(tmp_path):
    tied = Tied()
    save_weights(tied, tmp_path / "tied.safetensors")
    load_weights(Tied(), tmp_path / "tied.safetensors")
    assert set(load_file(tmp_path / "tied.safetensors")) == {"first.weight", "second.weight"}
    base = torch.arange(6.0).reshape(2, 3)
    save_weights({"rows": base[0], "turned": base.T}, tmp_path / "views.safetensors")
    found = load_file(tmp_path / "views.safetensors")
    assert torch.equal(found["rows"], base[0])
    assert torch.equal(found["turned"], base.T)


def test_a_failed_save_leaves_the_old_file_and_no_rest(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_weights({"a": torch.ones(2)}, file)
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "folder.safetensors" / "kept").touch()
    with pytest.raises(DeployError, match="cannot write"):
        save_weights({"a": torch.zeros(2)}, tmp_path / "folder.safetensors")
    assert torch.equal(load_file(file)["a"], torch.ones(2))
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "folder.safetensors"}


def test_a_network_that_asks_for_its_version_loads(tmp_path: pathlib.Path) -> None:
    model = create_model("torchvision:mnasnet0_5", 10)
    save_weights(model, tmp_path / "weights.safetensors")
    again = create_model("torchvision:mnasnet0_5", 10)
    load_weights(again, tmp_path / "weights.safetensors")
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())

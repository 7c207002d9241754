import sys

import pytest
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.zoo import WGATES_MODELS, create_model, input_size_of


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", WGATES_MODELS)
def test_wgates_models(name):
    model = create_model(f"wgates:{name}", 4).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    if name.startswith("resnet"):
        has_projection = any("shortcut" in key for key in model.state_dict())
        assert has_projection != name.endswith("a")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "googlenet"])
def test_torchvision_models_answer_with_logits(name):
    model = create_model(f"torchvision:{name}", 6)
    model.train()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 6)


@pytest.mark.parametrize(
    ("spec", "suggestion"),
    [
        ("wgates:resnet21", "wgates:resnet20"),
        ("torchvision:resnet51", "torchvision:resnet50"),
        ("resnet50", "torchvision:resnet50"),
        ("torchvision:fasterrcnn_resnet50_fpn", ""),
        ("nonsense", "path/to/file.py:factory"),
    ],
)
def test_unknown_names_are_repeated_with_close_ones(spec, suggestion):
    with pytest.raises(ModelError) as failure:
        create_model(spec, 10)
    assert repr(spec) in failure.value.message
    assert suggestion in failure.value.fix
    assert failure.value.fix


def test_missing_timm_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="pip install timm"):
        create_model("timm:resnet18", 10)


def test_one_class_is_refused():
    with pytest.raises(ModelError, match="1 classes"):
        create_model("wgates:resnet20", 1)


def test_file_factory_gets_the_classes_if_it_accepts_them(tmp_path):
    file = write(
        tmp_path / "mine.py",
        "from torch import nn\n"
        "def head(num_classes): return nn.Linear(3, num_classes)\n"
        "def any_keyword(**options): return nn.Linear(3, options['num_classes'])\n"
        "def fixed(): return nn.Linear(3, 2)\n"
        "def number(): return 3\n",
    )
    assert create_model(f"{file}:head", 5).out_features == 5
    assert create_model(f"{file}:any_keyword", 6).out_features == 6
    assert create_model(f"{file}:fixed", 5).out_features == 2
    with pytest.raises(ModelError, match=r"returned a int, not a torch\.nn\.Module"):
        create_model(f"{file}:number", 5)


def test_file_factory_may_be_a_class_and_import_its_neighbour(tmp_path):
    write(tmp_path / "neighbour_of_net.py", "WIDTH = 9\n")
    file = write(
        tmp_path / "net.py",
        "from torch import nn\n"
        "from neighbour_of_net import WIDTH\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, *, num_classes): super().__init__(WIDTH, num_classes)\n",
    )
    path_before = list(sys.path)
    model = create_model(f"{file}:Net", 5)
    assert isinstance(model, nn.Linear)
    assert model.weight.shape == (5, 9)
    assert sys.path == path_before
    assert "net" not in sys.modules


def test_an_edited_file_is_imported_again(tmp_path):
    text = "from torch import nn\ndef make(): return nn.Linear(1, {})\n"
    file = write(tmp_path / "mine.py", text.format(3))
    assert create_model(f"{file}:make", 3).out_features == 3
    write(file, text.format(14))
    assert create_model(f"{file}:make", 3).out_features == 14


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module_here\n", "line 1 failed with ModuleNotFoundError"),
        ("x = 1\ndef make(:\n", "line 2 failed with SyntaxError"),
        ("def make():\n    return 1 / 0\n", "line 2 failed with ZeroDivisionError"),
        ("def other(): pass\n", "callables in the file: other"),
    ],
)
def test_a_broken_file_is_blamed_with_its_line(tmp_path, text, reason):
    file = write(tmp_path / "mine.py", text)
    with pytest.raises(ModelError, match=reason):
        create_model(f"{file}:make", 3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file .*absent\.py"):
        create_model(f"{tmp_path}/absent.py:make", 3)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("wgates:resnet20", 32),
        ("torchvision:resnet50", 224),
        ("torchvision:inception_v3", 299),
        ("timm:resnet18", 224),
        ("some/file.py:make", None),
    ],
)
def test_input_sizes(spec, size):
    assert input_size_of(spec) == size

"""The networks of the coverage study and how each is made."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor, nn

from pipeline.models.zoo import create_model

CLASSES = 10
TIMM = (
    *("regnetx_002", "regnety_004", "regnetz_b16", "gernet_s", "resnet26t", "resnetv2_50"),
    *("efficientnet_b0", "efficientnet_lite0", "tf_efficientnetv2_b0", "efficientnetv2_rw_t"),
    *("mobilenetv3_large_100", "mobilenetv4_conv_small", "mobileone_s0", "lcnet_050"),
    *("ghostnet_100", "ghostnetv2_100", "repghostnet_050", "mnasnet_100", "semnasnet_075"),
    *("densenetblur121d", "dpn48b", "res2net50_26w_4s", "res2next50", "dla34", "dla60_res2net"),
    *("resnest14d", "resnest50d", "seresnet18", "seresnext26d_32x4d", "ecaresnet26t"),
    *("skresnet18", "convnext_atto", "convnextv2_atto", "repvgg_a0", "hrnet_w18_small"),
    *("inception_v4", "inception_resnet_v2", "xception41", "ese_vovnet19b_dw", "vovnet39a"),
    *("cspresnet50", "cspdarknet53", "darknet53", "mixnet_s", "rexnet_100", "hardcorenas_a"),
    *("tinynet_e", "fbnetc_100", "selecsls42b", "nfnet_l0", "starnet_s1"),
)
# images of 64 pixels show every structure; these need more, or are made for one size
SIZES = {
    **dict.fromkeys(("inception_v3", "inception_v4", "inception_resnet_v2", "xception41"), 96),
    **dict.fromkeys(("alexnet", "maxvit_t"), 224),
    **{f"vgg{depth}{norm}": 224 for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    **{"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 128},
}
# vision transformers made for 64 pixels (vit_h_14: 70), so that their tokens stay few
SMALL_TRANSFORMERS = {
    **dict.fromkeys(("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"), 64),
    "vit_h_14": 70,
}


class OneOutput(nn.Module):
    """A backbone of several outputs as a network of one: (n, features) of all, flattened."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        found = self.backbone(images)
        maps = found.values() if isinstance(found, Mapping) else found
        return torch.cat([item.flatten(1) for item in maps], 1)


def names() -> list[str]:
    """`torchvision:`, `segmentation:`, `detection:` and `timm:` names, in this order."""
    models = torchvision.models
    sources = {
        "torchvision": models.list_models(module=models),
        "segmentation": models.list_models(module=models.segmentation),
        "detection": models.list_models(module=models.detection),
        "timm": TIMM,
    }
    return [f"{source}:{name}" for source, found in sources.items() for name in found]


def image_size(name: str) -> int:
    """Pixels."""
    plain = name.partition(":")[2]
    return SMALL_TRANSFORMERS.get(plain) or SIZES.get(plain, 64)


def make(name: str, seed: int) -> nn.Module:
    """The network in eval mode, with random weights and batch norms as if trained."""
    torch.manual_seed(seed)
    source, _, plain = name.partition(":")
    if plain in SMALL_TRANSFORMERS:
        size = image_size(name)
        model = torchvision.models.get_model(plain, image_size=size, num_classes=CLASSES)
    elif source in ("segmentation", "detection"):
        whole = torchvision.models.get_model(plain, weights=None, weights_backbone=None)
        model = OneOutput(whole.backbone)
    else:
        model = create_model(name, CLASSES)
    _enliven(model)
    return model.eval()


def _enliven(model: nn.Module) -> None:
    """Random batch norms, and no zeros: layers that start at zero would prove nothing."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)

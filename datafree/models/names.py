"""Names of networks: of the registry, of a library, or of a file of the user's own, with the input format they bring.

wrn40_2                                        of registry.py
torchvision:resnet18                           of torchvision.models
timm:vit_tiny_patch16_224,img_size=32          of timm, with arguments of its create_model
timm:hf-hub:ORG/NAME   timm:local-dir:FOLDER   likewise, from the hub or a folder
hf:ORG/NAME   hf:FOLDER                        an image classifier of transformers
path/to/file.py:function,depth=20              what the function returns, called with num_classes where it takes it
"""

import ast
import inspect
import json
import logging
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from .. import user_code
from ..data.specs import DatasetSpec, Size, pair
from ..errors import UserError, first_line, nearest_names
from ..weights.reading import SUFFIXES
from .classifier import Classifier, check_has_values, is_lazy
from .fetching import NoNetworkError, fetching, is_for_want_of_network

Weights = Literal["none", "file", "own"]
CLASS_COUNT = ("nc", "num_cls", "num_labels", "n_labels", "num_outputs", "out_dim")  # what else it is called
OF_TIMM = "hf-hub:", "hf_hub:", "local-dir:"  # before what timm looks for elsewhere than among its own names
INSTALL = "pip install -r requirements-models.txt"


@dataclass(frozen=True)
class InputFormat:
    """What a network takes, as far as it is known; None where it is not. Mean and std a value a channel, of [0, 1]."""

    img_size: Size | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def over(self, other: "InputFormat") -> "InputFormat":
        """This one, with what it does not know taken from the other."""
        known = {each.name: getattr(self, each.name) for each in fields(self)}
        return InputFormat(*(getattr(other, name) if value is None else value for name, value in known.items()))

    def for_channels(self, channels: int) -> "InputFormat":
        """With a mean and std for that many channels: one value stands for all, their average for one."""
        fit = {name: getattr(self, name) for name in ("mean", "std")}
        for name, values in fit.items():
            if values is not None and len(values) != channels:
                fit[name] = (sum(values) / len(values),) * channels
        return InputFormat(self.img_size, channels, **fit)


UNKNOWN = InputFormat()


def format_of(spec: DatasetSpec) -> InputFormat:
    """That of a data set's images."""
    return InputFormat(spec.img_size, spec.shape[0], spec.mean, spec.std)


def given_format(values: Namespace, role: str) -> InputFormat:
    """What the flags say of the images that the "teacher", the "student" or the "model" takes."""
    size, channels, mean, std = (getattr(values, f"{role}_{each.name}", None) for each in fields(InputFormat))
    shown = (None if each is None else tuple(np.atleast_1d(each).tolist()) for each in (mean, std))
    return InputFormat(pair(size) if size else None, channels, *shown)


def classifier_of(
    network: nn.Module, name: str, num_classes: int, own: InputFormat, of_data: InputFormat
) -> Classifier:
    """A network with its own format as far as it is known, else the data's; channels as its first convolution has."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    seen = first.in_channels if first is not None and first.in_channels in (1, 3) else None
    channels = own.channels or seen or (own.mean and len(own.mean)) or of_data.channels
    takes = own.over(of_data).for_channels(channels)
    return Classifier(network, name, num_classes, takes.img_size, takes.mean, takes.std)


def network_of(
    name: str, num_classes: int, known: Mapping[str, Any], given: InputFormat, weights: Weights, download: bool = False
) -> tuple[nn.Module, InputFormat]:
    """The network that a name means, and the format that comes with it.

    Args:
        name: see the top of the file.
        num_classes: of the logits.
        known: the registry's functions of the class count, by name.
        given: what is known from elsewhere; ``channels`` decides how the network is built.
        weights: whether it comes with weights that somebody trained, from a "file" or of its "own" (a transformers
            folder, a function that loads them): then its library's mean, std and size hold; for "none" only a size that
            its architecture is bound to.
        download: whether a library may fetch what its cache lacks.

    Raises:
        UserError: an unknown name, a library that is not installed, or arguments that do not fit.
    """
    if user_code.is_file(name):
        network = _of_file(name, num_classes)
        if weights == "own":
            _check_trained(name, network, _of_file(name, num_classes))
        return network, InputFormat()
    library, colon, rest = name.partition(":")
    if not colon:
        if name not in known:
            if name.endswith(".py"):
                raise UserError(f"{name} is a file", f"name what makes the network, too: {name}:FUNCTION")
            if Path(name).exists() or name.endswith(SUFFIXES):
                remedy = "name the network; weights are for --teacher_path, and a folder of transformers is hf:FOLDER"
                raise UserError(f"{name} is a file or folder, not a network's name", remedy)
            hint = f"{nearest_names(name, known)}; or torchvision:NAME, timm:NAME, hf:NAME, FILE.py:FUNCTION"
            raise UserError(f"unknown model {name!r}", hint)
        return with_channels(known[name](num_classes), given.channels), InputFormat()
    if library not in LIBRARIES:
        raise UserError(f"unknown library {library!r} in {name!r}", f"known: {', '.join(LIBRARIES)}, FILE.py:FUNCTION")
    wanted, arguments = with_arguments(rest)
    in_a_cache = brings_weights(name) and not Path(wanted.removeprefix("local-dir:")).expanduser().is_dir()
    try:
        with fetching(name, library, may=download and in_a_cache):
            return LIBRARIES[library](wanted, num_classes, arguments, given, weights)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{name} needs {error.name or error}", INSTALL) from None
    except Exception as error:  # whatever a library raises
        raise UserError(
            f"{name} cannot be made: {str(error).strip() or type(error).__name__}", "see its library"
        ) from None


def brings_weights(name: str) -> bool:
    """Whether the name by itself may stand for a trained network."""
    if user_code.is_file(name) or name.startswith(("hf:", *(f"timm:{source}" for source in OF_TIMM))):
        return True
    return ":" in name and any(with_arguments(name)[1].get(key) for key in ("pretrained", "weights"))


def with_arguments(text: str) -> tuple[str, dict[str, Any]]:
    """``"NAME,a=(1,2),b=x"`` -> ("NAME", {"a": (1, 2), "b": "x"}). Raises UserError for an argument without a value."""
    name, *pairs = _parts(text)
    arguments = {}
    for each in pairs:
        key, equals, value = each.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{each!r} in {text!r} is no argument", "write NAME,argument=value,argument=value")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return name, arguments


def _parts(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def with_channels(network: nn.Module, channels: int | None) -> nn.Module:
    """The network, its first convolution made anew for that many channels where it has another number."""
    name, first = next(((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), (None, None))
    if channels and first is not None and first.in_channels != channels:
        made = nn.Conv2d(
            channels,
            first.out_channels,
            first.kernel_size,
            first.stride,
            first.padding,
            first.dilation,
            bias=first.bias is not None,
        )
        network.set_submodule(name, made)
    return network


def _of_file(name: str, num_classes: int) -> nn.Module:
    file, _, attribute = name.partition(".py:")
    function, arguments = with_arguments(attribute)
    make = user_code.load(f"{file}.py:{function}", "model")
    if isinstance(make, nn.Module):
        return make
    try:
        with user_code.beside(f"{file}.py"):
            made = make(**_with_classes(make, num_classes, arguments))
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"{name} cannot be called: {type(error).__name__}: {error}", "mend it") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{name} returns a {type(made).__name__}, no torch.nn.Module", "let it return the network")
    return made


def _check_trained(name: str, network: nn.Module, again: nn.Module) -> None:
    """Raises UserError where a second call gives other weights: they are random, and no teacher's."""
    check_has_values(network, name)
    values = zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    weights = ((a, b) for a, b in values if isinstance(a, torch.Tensor))  # a module may keep more
    if is_lazy(network) or (network is not again and not all(torch.equal(a, b) for a, b in weights)):
        raise UserError(f"{name} gives random weights", "give the trained ones with --teacher_path")


def _with_classes(make: Callable[..., Any], num_classes: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with the class count for whichever takes it: by its name, else the first that needs a value."""
    takes = inspect.signature(make).parameters
    named = [key for key in takes if "class" in key.lower() and "name" not in key.lower()]
    named += [key for key in CLASS_COUNT if key in takes]
    free = [key for key, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    chosen = named[:1] or [key for key in free if key not in arguments][:1] or (["num_classes"] if anything else [])
    return dict.fromkeys(chosen, num_classes) | arguments


def _torchvision(
    name: str, num_classes: int, arguments: dict[str, Any], given: InputFormat, weights: Weights
) -> tuple[nn.Module, InputFormat]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"torchvision has no classifier {name!r}", nearest_names(name, known))
    if "pretrained" in arguments:
        raise UserError(f"torchvision:{name} takes weights=..., not pretrained=...", "say weights=DEFAULT")
    how = arguments if "weights" in arguments else {"weights": None, "num_classes": num_classes} | arguments
    if how["weights"] is not None:
        _check_weights(name, models.get_model_weights(name), how["weights"])
    network = models.get_model(name, **how)
    size = getattr(network, "image_size", None)  # of a vision transformer, which takes no other
    trained = weights == "own" and how["weights"]
    own = _trained_on(models.get_model_weights(name), how["weights"]) if trained else UNKNOWN
    return with_channels(network, given.channels), InputFormat(pair(size) if size else None).over(own)


def _check_weights(name: str, kind: type[Enum], weights: Any) -> None:
    """Raises UserError for weights that torchvision does not have of that model."""
    before, _, member = str(weights).rpartition(".")
    if member not in kind.__members__ or before not in ("", kind.__name__):
        known = ", ".join(kind.__members__) or "none"
        raise UserError(f"torchvision:{name} has no weights {str(weights)!r}", f"there are: {known}")


def _trained_on(kind: type[Enum], weights: str) -> InputFormat:
    """What these weights of torchvision's were trained to read, by the transforms that come with them."""
    reads = kind[weights.rpartition(".")[2]].transforms()
    return InputFormat(pair(reads.crop_size), None, tuple(reads.mean), tuple(reads.std))


def _timm(
    name: str, num_classes: int, arguments: dict[str, Any], given: InputFormat, weights: Weights
) -> tuple[nn.Module, InputFormat]:
    import timm

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # which tells of each time it tries again
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:")).expanduser()
        if not (folder / "config.json").is_file():
            raise UserError(f"timm:{name} is no folder of timm's: no config.json in it", "check the path")
        name = f"local-dir:{folder}"
    elsewhere = name.startswith(OF_TIMM)
    if not (elsewhere or timm.is_model(name)):
        raise UserError(f"timm has no model {name!r}", nearest_names(name, timm.list_models()))
    arguments = {"pretrained": True} | arguments if elsewhere and weights == "own" else arguments
    channels = {"in_chans": given.channels} if given.channels not in (None, 3) else {}
    classes = {} if weights == "own" else {"num_classes": num_classes}  # for another count timm makes a random head
    network = timm.create_model(name, **classes | channels | arguments)
    about = timm.data.resolve_data_config({}, model=network)
    own = InputFormat(pair(about["input_size"][1:]), None, tuple(about["mean"]), tuple(about["std"]))
    bound = (getattr(network, "pretrained_cfg", None) or {}).get("fixed_input_size", False)
    if "img_size" in arguments:
        own, bound = InputFormat(pair(arguments["img_size"]), None, own.mean, own.std), True
    return network, own if weights != "none" else InputFormat(own.img_size if bound else None)


def _transformers(
    name: str, num_classes: int, arguments: dict[str, Any], given: InputFormat, weights: Weights
) -> tuple[nn.Module, InputFormat]:
    import transformers
    from huggingface_hub import constants

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind, local = transformers.AutoModelForImageClassification, {"local_files_only": constants.HF_HUB_OFFLINE}
    folder = Path(name).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or name.count("/") != 1):
        raise UserError(f"hf:{name} is neither a folder nor ORG/NAME", "check the path")
    place = str(folder) if folder.is_dir() else name
    try:
        if weights == "own":
            network, info = kind.from_pretrained(place, output_loading_info=True, **local, **arguments)
            _check_whole(name, info["missing_keys"])
        else:
            told = local | {"num_labels": num_classes} | arguments
            config = transformers.AutoConfig.from_pretrained(place, **told)
            if given.channels and hasattr(config, "num_channels") and "num_channels" not in arguments:
                config.num_channels = given.channels
            network = with_channels(kind.from_config(config), getattr(config, "num_channels", given.channels))
    except AttributeError as error:
        if "NoneType" not in str(error) or folder.is_dir():
            raise
        raise NoNetworkError(name) from error  # version 4 goes on without a file that it was kept from fetching
    except OSError as error:
        if is_for_want_of_network(error):
            raise
        remedy = "check the name" if folder.is_dir() else "check the name, and give --download where it is not whole"
        raise UserError(f"hf:{name} cannot be read: {first_line(error)}", remedy) from None
    size = getattr(network.config, "image_size", None)
    bound = InputFormat(pair(size) if isinstance(size, int | list | tuple) else None)
    if weights == "none":
        return network, UNKNOWN if _takes(network, given) else bound
    channels = InputFormat(channels=getattr(network.config, "num_channels", None))
    return network, _preprocessing(name, place, local).over(bound).over(channels)


def _takes(network: nn.Module, images: InputFormat) -> bool:
    """Whether an untrained network answers such an image: many a configuration names a size that binds nothing."""
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, images.channels, *images.img_size))
    except Exception:  # in whatever words
        return False
    finally:
        network.train()
    return True


def _check_whole(name: str, missing: Iterable[str]) -> None:
    """Raises UserError where weights of a network are not in its folder: it would answer at random."""
    missing = sorted(missing)
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(f"hf:{name} has no weights for {shown}", "train it, or name a trained classifier")


def _preprocessing(name: str, place: str, local: dict[str, bool]) -> InputFormat:
    """What a transformers network reads, as far as its preprocessor_config.json says it.

    There an image of levels 0..255 becomes (level * rescale_factor - mean) / std; here it is a pixel in [0, 1].
    """
    from transformers.utils import cached_file

    try:
        about = json.loads(Path(cached_file(place, "preprocessor_config.json", **local)).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # there is none, or none that can be read
        return InputFormat()
    if about.get("do_flip_channel_order"):
        raise UserError(f"hf:{name} reads blue before red", "wrap it in a function of your own: FILE.py:FUNCTION")
    mean, std = about.get("image_mean"), about.get("image_std")
    if about.get("do_normalize") is False:
        mean, std = (0.0,) * len(mean or (0, 0, 0)), (1.0,) * len(std or (0, 0, 0))
    if not (mean and std):
        return InputFormat(_cropped_to(about))
    scale = 255 * float(about.get("rescale_factor", 1 / 255)) if about.get("do_rescale", True) else 255.0
    return InputFormat(_cropped_to(about), None, *(tuple(float(v) / scale for v in each) for each in (mean, std)))


def _cropped_to(about: Mapping[str, Any]) -> Size | None:
    """Height and width of what the network is given, in either of the forms that transformers writes."""
    size = (about.get("do_center_crop") and about.get("crop_size")) or about.get("size")
    if isinstance(size, Mapping):
        sides = size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))
        return (int(sides[0]), int(sides[1])) if all(sides) else None
    return pair(size) if isinstance(size, int) else None


LIBRARIES = {"torchvision": _torchvision, "timm": _timm, "hf": _transformers}

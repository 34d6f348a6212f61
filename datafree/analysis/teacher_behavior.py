"""What a teacher says about real, synthetic and adversarial images; for notebooks/teacher_behavior.ipynb."""

import pandas as pd
import torch
from art.attacks.evasion import CarliniL2Method
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..reporting.run_networks import RunNetworks
from .calibration import judge

REAL, SYNTHETIC, AGAIN = "real", "synthetic", "synthetic, asked again"
UNDER_P, CARLINI_WAGNER = "synthetic under P", "real, Carlini-Wagner"
LEARNING_RATE, FIRST_CONSTANT = 0.1, 1.0  # chosen by us: with the library's 0.01 for both, black pixels hardly move


def carlini_wagner(model: nn.Module, x: Tensor, num_classes: int, steps: int = 10, searches: int = 3) -> Tensor:
    """Images of another predicted class, near in L2 (Carlini and Wagner, 2017): pixels (B, 3, H, W) to pixels.

    An image for which none is found comes back as it was. ``steps`` of descent for each of ``searches`` constants
    between nearness and class. It is the yardstick for what P does in one pass.
    """
    shape = {"input_shape": tuple(x.shape[1:]), "nb_classes": num_classes, "clip_values": (0.0, 1.0)}
    shape["device_type"] = "gpu" if x.device.type == "cuda" else "cpu"
    classifier = PyTorchClassifier(model, loss=nn.CrossEntropyLoss(), **shape)
    search = {"max_iter": steps, "binary_search_steps": searches, "batch_size": 64, "verbose": False}
    attack = CarliniL2Method(classifier, learning_rate=LEARNING_RATE, initial_const=FIRST_CONSTANT, **search)
    return torch.from_numpy(attack.generate(x.cpu().numpy())).to(x)


def observe(run: RunNetworks, synthetic: int, attacked: int, seed: int = 0) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Asks the run's teacher about everything: pixels by kind, and of each image, in that order, a row of ``judge``.

    The kinds are the test set with its true labels; images of the generator, which the teacher labels; the same, asked
    about a second time; the same under the run's P; and real images that the teacher knows, changed by Carlini and
    Wagner's attack until it does not (some may withstand). An attacked image has the clean one's label.

    ``synthetic`` and ``attacked`` are how many of the second and (slow) of the last there are at most. Raises UserError
    where the run had no attack, or there is no test set.
    """
    images, teacher = run.real_images(), run.teacher
    real = images.images.float() / 255
    z = torch.randn(synthetic, run.nz, generator=run.stream(seed, "noise"), device=run.compute.device)
    with torch.no_grad():
        made = torch.cat([run.generator(part) for part in z.split(64)])
        under_P = torch.cat([run.perturb(part) for part in made.split(64)])
    on_real, on_made = judge(teacher, real, images.labels), judge(teacher, made)
    labels = torch.tensor(on_made.label.to_numpy(), device=made.device)
    known = torch.tensor(on_real.index[on_real.right][:attacked])
    changed = carlini_wagner(teacher, real[known], run.spec.num_classes)
    judged = {REAL: on_real, SYNTHETIC: on_made, AGAIN: judge(teacher, made, labels)}
    judged |= {UNDER_P: judge(teacher, under_P, labels), CARLINI_WAGNER: judge(teacher, changed, images.labels[known])}
    pixels = {REAL: real, SYNTHETIC: made, AGAIN: made, UNDER_P: under_P, CARLINI_WAGNER: changed}
    return pixels, pd.concat(judged, names=["images"])


def parted(frame: pd.DataFrame) -> pd.DataFrame:
    """What is shown, by ``name``: the real ones parted into right and wrong, of Carlini and Wagner's the changed."""
    kinds = frame.index.get_level_values("images")
    shown = frame[(kinds != AGAIN) & ~((kinds == CARLINI_WAGNER) & frame.right)]
    parts = {True: f"{REAL}, right", False: f"{REAL}, wrong"}
    return shown.assign(name=[parts[right] if kind == REAL else kind for (kind, _), right in shown.right.items()])


def gallery(pixels: dict[str, Tensor], shown: pd.DataFrame, most: int = 8) -> tuple[dict[str, Tensor], dict[str, list]]:
    """The first images by name, and for each its label, the prediction and the confidence."""
    rows, texts = {}, {}
    for name, group in shown.groupby("name", sort=False):
        kinds, numbers = zip(*group.index[:most], strict=True)
        rows[name] = pixels[kinds[0]][list(numbers)]
        first = group.head(most).itertuples()
        texts[name] = [f"label {row.label}, says\n{row.predicted} ({row.confidence:.2f})" for row in first]
    return rows, texts

"""What starting from a fitted checkpoint is worth, measured: row R27 of the use cases.

    python scripts/transfer_demo.py [--plot docs/transfer.svg] [--real RESNET20 RESNET32]

A small convolutional network learns the digits 0 to 4 of scikit-learn's `load_digits`. `ckpt fit`
carries its checkpoint into a network for the digits 5 to 9 with a wider head, which then learns
from a few examples, once from the fitted file and once from scratch, over several seeds. With
`--real` it also fits a published ResNet-20 for CIFAR-10 to the ResNet-32 of the same authors and
says what of it came along.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

_SEEDS = 5
_EPOCHS = 20
_EXAMPLES = 20  # of each new class
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 360, 56, 44


class Digits(nn.Module):
    """Two convolutions with batch norm, one hidden layer, a head."""

    def __init__(self, classes: int = 5, hidden: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(128, 32)
        self.head = nn.Sequential(nn.Linear(32, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(functional.relu(self.hidden(self.features(images).flatten(1))))


def wider_head() -> nn.Module:
    """The network for the other digits."""
    return Digits(hidden=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plot", type=Path, help="write the curves as SVG")
    parser.add_argument("--real", nargs=2, metavar=("RESNET20", "RESNET32"))
    arguments = parser.parse_args()
    curves: dict[str, list[list[float]]] = {"from scratch": [], "from the fitted file": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(_SEEDS):
            fitted = _pretrain_and_fit(Path(folder), seed)
            for label, weights in zip(curves, (None, fitted), strict=True):
                curves[label].append(_train_on_few(weights, seed))
    _print_curves(curves)
    if arguments.plot:
        arguments.plot.write_text(_draw(curves), encoding="utf-8")
    if arguments.real:
        _fit_real(*arguments.real)


def _data(first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, 8, 8) and labels 0 to 4 of the five digits from `first` on."""
    digits = load_digits()
    labels = torch.from_numpy(digits.target)
    chosen = (labels >= first) & (labels < first + 5)
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    return images[chosen], labels[chosen] - first


def _pretrain_and_fit(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = Digits()
    images, labels = _data(0)
    _train(model, images, labels, epochs=10, lr=0.02)
    saved, fitted = folder / f"pretrained{seed}.pth", folder / f"fitted{seed}.pth"
    torch.save({"epoch": 10, "state_dict": nn.DataParallel(model).state_dict()}, saved)
    command = ["fit", str(saved), "--model", "transfer_demo:wider_head", "--seed", str(seed)]
    done = _ckpt(*command, "-o", str(fitted))
    if seed == 0:
        print(done.replace(str(folder) + "/", ""))
    return fitted


def _ckpt(*arguments: str) -> str:
    """Run `ckpt` where this module can be imported, as a user would."""
    command = [sys.executable, "-m", "ckpt_surgery", *arguments]
    here = Path(__file__).resolve().parent
    done = subprocess.run(command, cwd=here, check=True, capture_output=True, text=True)
    return done.stdout


def _train(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, epochs: int, lr: float
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(16):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def _train_on_few(weights: Path | None, seed: int) -> list[float]:
    """Accuracy on the other images after each epoch, from 0 on, of a network for digits 5 to 9."""
    torch.manual_seed(seed)
    model = wider_head()
    if weights is not None:
        loaded = torch.load(weights, weights_only=True)["state_dict"]
        model.load_state_dict(loaded, strict=True)
    images, labels = _data(5)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    few = torch.cat([order[labels[order] == digit][:_EXAMPLES] for digit in range(5)])
    rest = torch.tensor(sorted(set(range(len(images))) - set(few.tolist())))
    accuracies = [_accuracy(model, images[rest], labels[rest])]
    for epoch in range(_EPOCHS):
        torch.manual_seed(1000 * seed + epoch)
        _train(model, images[few], labels[few], epochs=1, lr=0.01)
        accuracies.append(_accuracy(model, images[rest], labels[rest]))
    return accuracies


def _accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def _mean(curves: list[list[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def _print_curves(curves: dict[str, list[list[float]]]) -> None:
    print(f"accuracy on digits 5 to 9, mean of {_SEEDS} seeds (lowest to highest)")
    print(f"{'epoch':>5}  " + "  ".join(f"{label:>22}" for label in curves))
    for epoch in (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20):
        cells = []
        for each in curves.values():
            values = [curve[epoch] for curve in each]
            mean = sum(values) / len(values)
            cells.append(f"{mean:.3f} ({min(values):.3f}-{max(values):.3f})")
        print(f"{epoch:>5}  " + "  ".join(f"{cell:>22}" for cell in cells))


def _draw(curves: dict[str, list[list[float]]]) -> str:
    """The mean curves, with a band from the lowest to the highest seed."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        '<g font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        parts += [
            f'<line x1="{_LEFT}" x2="{_WIDTH - 16}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>',
        ]
    for epoch in range(0, _EPOCHS + 1, 5):
        x, y = _x(epoch), _HEIGHT - _BOTTOM + 18
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{epoch}</text>')
    for row, (color, (label, each)) in enumerate(
        zip(("#888888", "#0b6fb8"), curves.items(), strict=True)
    ):
        lows, highs = ([f(v) for v in zip(*each, strict=True)] for f in (min, max))
        band = [*enumerate(lows), *reversed(list(enumerate(highs)))]
        parts += [
            f'<polygon points="{_points(band)}" fill="{color}" fill-opacity="0.15"/>',
            f'<g fill="none" stroke="{color}" stroke-width="2">',
            f'<polyline points="{_points(list(enumerate(_mean(each))))}"/></g>',
            f'<text x="470" y="{_y(0.25) + 20 * row:.1f}" fill="{color}">{label}</text>',
        ]
    middle, below = (_LEFT + _WIDTH) // 2, _HEIGHT - 8
    parts += [
        '<g text-anchor="middle">',
        f'<text x="{middle}" y="{below}">epochs on {5 * _EXAMPLES} images</text>',
        f'<text transform="translate(14 {_HEIGHT // 2}) rotate(-90)">accuracy on digits 5 to 9',
        "</text></g></g></svg>\n",
    ]
    return "\n".join(parts)


def _x(epoch: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - 16) * epoch / _EPOCHS


def _y(accuracy: float) -> float:
    return 16 + (_HEIGHT - _BOTTOM - 16) * (1 - accuracy)


def _points(pairs: list[tuple[int, float]]) -> str:
    return " ".join(f"{_x(epoch):.1f},{_y(value):.1f}" for epoch, value in pairs)


def _fit_real(shallow: str, deep: str) -> None:
    """Carry the published ResNet-20 over to the layout of the published ResNet-32."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "fitted.th"
        shallow, deep = (str(Path(path).resolve()) for path in (shallow, deep))
        said = _ckpt("fit", shallow, "--like", deep, "-o", str(output))
        for path in (shallow, deep, str(output)):
            said = said.replace(path, Path(path).name)
        print(said)


if __name__ == "__main__":
    main()

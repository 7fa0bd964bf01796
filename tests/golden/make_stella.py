"""Makes stella/: StelLA's step as arXiv 2510.01938 states it, in NumPy, and the gradients of its layer, by PyTorch; both in f64.
`python make_stella.py`

PyTorch's orientation: W [out, in] + scale U S V^T, with U [out, r] and V [in, r].
"""

import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

FOLDER = pathlib.Path(__file__).parent / "stella"
FOLDER.mkdir(exist_ok=True)
RANK, D_OUT, D_IN, WIDTH, STEPS = 3, 10, 16, 10, 4
RATE, DECAY, BETA1, BETA2, EPSILON = 0.05, 0.1, 0.9, 0.999, 1e-8
rng = np.random.default_rng(2510)


def noise(*shape):
    return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


def orthonormal(rows):
    return polar(noise(rows, RANK)).astype(np.float32).astype(np.float64)


def polar(matrix):
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


class AdamW:
    """One parameter's AdamW."""

    def __init__(self):
        self.first, self.second, self.count = 0.0, 0.0, 0

    def step(self, parameter, gradient):
        self.count += 1
        self.first = BETA1 * self.first + (1 - BETA1) * gradient
        self.second = BETA2 * self.second + (1 - BETA2) * gradient**2
        mean = self.first / (1 - BETA1**self.count)
        root = np.sqrt(self.second / (1 - BETA2**self.count))
        return parameter * (1 - RATE * DECAY) - RATE * mean / (root + EPSILON)


def on_manifold(optimizer, point, derivatives):
    """Riemannian gradient, the optimizer's step, its projection to the tangent space, the polar retraction."""
    gradient = derivatives - point @ derivatives.T @ point
    moved = optimizer.step(point, gradient)
    direction = (moved - point) * np.sqrt(WIDTH / len(point))
    inner = point.T @ direction
    direction = direction - point @ (inner + inner.T) / 2
    return polar(point + direction)


tensors = {}
u, s, v = orthonormal(D_OUT), noise(RANK, RANK), orthonormal(D_IN)
optimizers = {name: AdamW() for name in "USV"}
tensors |= {"start.U": u, "start.S": s, "start.V": v}
for step in range(STEPS):
    derivatives = {"U": noise(*u.shape), "S": noise(*s.shape), "V": noise(*v.shape)}
    tensors |= {f"gradient{step}.{name}": value for name, value in derivatives.items()}
    u = on_manifold(optimizers["U"], u, derivatives["U"])
    s = optimizers["S"].step(s, derivatives["S"])
    v = on_manifold(optimizers["V"], v, derivatives["V"])
    tensors |= {f"after{step}.U": u, f"after{step}.S": s, f"after{step}.V": v}
as_single = lambda tensors: {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}
save_file(as_single(tensors), FOLDER / "steps.safetensors")

scale = 7.0 / RANK
torch.set_default_dtype(torch.float64)
W, b, x, t = (torch.tensor(value) for value in (noise(D_OUT, D_IN), noise(D_OUT), noise(5, D_IN), noise(5, D_OUT)))
x.requires_grad_(True)
U, S, V = (torch.nn.Parameter(torch.tensor(value)) for value in (orthonormal(D_OUT), noise(RANK, RANK), orthonormal(D_IN)))
y = x @ W.T + b + scale * ((x @ V) @ S.T) @ U.T
loss = 0.5 * ((y - t) ** 2).mean()
loss.backward()
layer = {"W": W, "b": b, "x": x, "t": t, "U": U, "S": S, "V": V, "y": y, "loss": loss.reshape(1), "W_merged": W + scale * U @ S @ V.T}
layer |= {"grad_x": x.grad, "grad_U": U.grad, "grad_S": S.grad, "grad_V": V.grad}
save_file(as_single({name: value.detach().numpy() for name, value in layer.items()}), FOLDER / "layer.safetensors")

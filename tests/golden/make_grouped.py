"""Makes grouped/: small matrices in the layouts of GPTQ and AWQ, and their values. `python make_grouped.py`

The layouts are written out in NumPy, from the packing code of AutoGPTQ 0.7.1 and AutoAWQ 0.2.9. If AutoAWQ's and AutoGPTQ's sources are
on the path (they need no build: PYTHONPATH of the unpacked archives), their own code unpacks the same tensors: AutoAWQ by
`awq/utils/packing_utils.py`, AutoGPTQ by `auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py`.
"""

import importlib.util
import pathlib
import sys

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "grouped"
FOLDER.mkdir(exist_ok=True)
D_OUT, D_IN, GROUP = 16, 72, 16
GROUPS = -(-D_IN // GROUP)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
random = np.random.default_rng(23)


def save(name, array):
    array.tofile(FOLDER / name)


def words(numbers, bits, order=None):
    """Packs numbers along the last axis, the first of each word in its lowest bits."""
    per_word = 32 // bits
    order = order or range(per_word)
    numbers = numbers.reshape(*numbers.shape[:-1], -1, per_word).astype(np.uint64)
    packed = sum(numbers[..., column] << np.uint64(bits * place) for place, column in enumerate(order))
    return packed.astype(np.uint32).view(np.int32)


def slow_values(codes, zeros, scales, groups):
    """The values `[d_in, d_out]` one by one."""
    values = np.zeros(codes.shape, np.float32)
    for i in range(codes.shape[0]):
        for o in range(codes.shape[1]):
            level = int(codes[i, o]) - int(zeros[groups[i], o])
            values[i, o] = float(scales[groups[i], o]) * level
    return values


def source(*names):
    """A module of a package on the path, without the package's own imports."""
    for folder in sys.path:
        path = pathlib.Path(folder).joinpath(*names)
        if path.is_file():
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    print(f"not on the path: {'/'.join(names)}")
    return None


def gptq(name, bits, groups, zero_points):
    codes = random.integers(0, 1 << bits, (D_IN, D_OUT))
    zeros = random.integers(1, 1 << bits, (GROUPS, D_OUT))
    scales = (random.random((GROUPS, D_OUT)) * 0.1 + 0.01).astype(np.float16)
    qweight = np.ascontiguousarray(words(codes.T, bits).T)
    qzeros = words(zeros - 1 if zero_points == "less one" else zeros, bits)
    values = scales.astype(np.float32)[groups] * (codes - zeros[groups]).astype(np.float32)
    assert (values == slow_values(codes, zeros, scales, groups)).all()
    module = source("auto_gptq", "nn_modules", "qlinear", "qlinear_cuda_old.py")
    neighbours = (groups == np.arange(D_IN) // GROUP).all() and D_IN % GROUP == 0
    if module is not None and zero_points == "less one" and neighbours:
        import torch

        layer = module.QuantLinear(bits, GROUP, D_IN, D_OUT, False, weight_dtype=torch.float32)
        layer.qweight, layer.qzeros = torch.tensor(qweight), torch.tensor(qzeros)
        layer.scales = torch.tensor(scales.astype(np.float32))
        assert (layer(torch.eye(D_IN)).numpy() == values).all()
        print(f"{name}: like AutoGPTQ")
    save(f"{name}.qweight", qweight)
    save(f"{name}.qzeros", qzeros)
    save(f"{name}.scales", scales)
    save(f"{name}.g_idx", groups.astype(np.int32))
    save(f"{name}.f32", np.ascontiguousarray(values.T))


def awq(name):
    codes = random.integers(0, 16, (D_IN, D_OUT))
    zeros = random.integers(0, 16, (GROUPS, D_OUT))
    scales = (random.random((GROUPS, D_OUT)) * 0.1 + 0.01).astype(np.float16)
    qweight, qzeros = words(codes, 4, AWQ_ORDER), words(zeros, 4, AWQ_ORDER)
    groups = np.arange(D_IN) // GROUP
    values = scales.astype(np.float32)[groups] * (codes - zeros[groups]).astype(np.float32)
    assert (values == slow_values(codes, zeros, scales, groups)).all()
    module = source("awq", "utils", "packing_utils.py")
    if module is not None:
        import torch

        unpacked = module.dequantize_gemm(
            torch.tensor(qweight), torch.tensor(qzeros), torch.tensor(scales.astype(np.float32)), 4, GROUP
        )
        assert (unpacked.numpy() == values).all()
        print(f"{name}: like AutoAWQ")
    save(f"{name}.qweight", qweight)
    save(f"{name}.qzeros", qzeros)
    save(f"{name}.scales", scales)
    save(f"{name}.f32", np.ascontiguousarray(values.T))


# 72 columns: half of the last group is missing where neighbours share one.
D_IN, GROUPS = 64, 4
gptq("gptq4", 4, np.arange(64) // GROUP, "less one")
gptq("gptq8", 8, np.arange(64) // GROUP, "less one")
awq("awq")
D_IN, GROUPS = 72, 5
gptq("gptq4_scattered", 4, random.permutation(np.arange(72) // GROUP), "plain")

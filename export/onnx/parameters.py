"""Simplifies a model without changing its parameters or the names that torch gives them."""

from __future__ import annotations

from stepfuse.export.onnx.translation import quiet
from stepfuse.extras import pip_install

try:
    import onnx_ir as ir
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch and onnx ({error}): {pip_install('export')}") from error


def name_shared(model: ir.Model, module: torch.nn.Module) -> None:
    """Gives a parameter that has several names its first, where torch takes that of its use."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for name, value in list(model.graph.initializers.items()):
        first = names.get(id(_tensor(value)), name)
        if first not in model.graph.initializers:
            value.name = first


def transpose_weights(model: ir.Model) -> set[str]:
    """Stores matrices that are only used transposed as their transpose, a view that is read when the file is written.

    Returns:
        Their names.
    """
    found = set()
    for name, value in list(model.graph.initializers.items()):
        nodes = list(value.consumers())
        if not nodes or any(
            node.op_type != "Transpose" or list(node.attributes["perm"].as_ints()) != [1, 0] for node in nodes
        ):
            continue
        turned = _tensor(value).detach().T
        value.const_value = ir.tensor_adapters.TorchTensor(turned, name=name)
        value.shape = ir.Shape(turned.shape)
        for node in nodes:
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
        found.add(name)
    return found


def simplify(model: ir.Model) -> None:
    """Folds constants and removes unused nodes. Parameters have no value meanwhile, so that none is folded."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript import optimizer

    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    for value in model.graph.initializers.values():
        value.const_value = None
    with quiet():
        optimizer.optimize_ir(model)
    ClearMetadataAndDocStringPass()(model)  # stack traces, with paths of this machine
    for name, tensor in weights.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = tensor


def drop_prefix(model: ir.Model, transposed: set[str], prefix: str) -> set[str]:
    """Shortens parameters' names, unless another value has the short one; returns the new names of ``transposed``."""
    weights = model.graph.initializers
    taken = {value.name for node in model.graph for value in node.outputs}
    taken.update(value.name for value in model.graph.inputs)
    taken.update(name for name in weights if not name.startswith(prefix))
    final = {}
    for name, value in list(weights.items()):
        short = name.removeprefix(prefix)
        final[name] = name if short in taken else short
        value.name = final[name]
    return {final[name] for name in transposed if name in final}


def _tensor(value: ir.Value) -> torch.Tensor:
    """The parameter or buffer that an initializer was made from."""
    tensor: torch.Tensor = getattr(value.const_value, "raw", None)
    return tensor

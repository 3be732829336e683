"""What we need of the private names of torch and Triton: one of these fails when a release changes it."""

import _thread
import ast
import inspect
import os
import pickle
import re
import sys
import threading
import warnings
from pathlib import Path
from unittest.mock import patch as replaced

import pytest
import torch
import triton
from functorch.compile import aot_function, default_partition, nop
from torch import nn
from torch.autograd import forward_ad
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.fx import traceback
from torch.utils.checkpoint import CheckpointPolicy

from tsm_triton import ops, torch_private
from tsm_triton.kernels import triton_private
from tsm_triton.ops import direct

ROOT = Path(__file__).parent.parent
TORCH_ONLY, TRITON_ONLY = (Path(module.__file__) for module in (torch_private, triton_private))
OPERATORS = (
    ROOT / "tsm_triton/dataflow/kinds.py"
)  # a table of the names of ATen's operators, and nothing else
# private names of others, which their own file of the package knows
OF_OTHERS = {
    "_old_forward": "accelerate",
    "_hf_hook": "accelerate",
    "_model_entrypoints": "timm",
    "_model_to_module": "timm",
    "_features": "timm",
    "_registry": "timm",
    "_utils": "torchvision",
    "_replace": "collections.namedtuple",
    "_asdict": "collections.namedtuple",
    "_exit": "os, documented",
    "_initializing": "importlib",
    "_fc_out": "E2E-Spot, keys of its weights",
    "_gru": "E2E-Spot",
    "_pred_fine": "E2E-Spot",
    "_expand_conv": "PaddleVideo, keys of its weights",
    "_mean": "PaddleVideo",
    "_variance": "PaddleVideo",
    "_reset_state": "accelerate",
    "_shared_state": "accelerate",
}


def sources() -> list[Path]:
    folders = ("tsm_triton", "benchmarks", "sweep", "examples", "kernel_hub")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [
        path
        for path in found
        if "results" not in path.parts and path not in (TORCH_ONLY, TRITON_ONLY, OPERATORS)
    ]


def defined(tree: ast.AST) -> set[str]:
    """The names that a file gives to things of its own."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def private_names(tree: ast.AST) -> set[str]:
    """The names with an underscore that a file reads, imports or spells out as a string."""
    found: set[str] = set()
    pieces = [part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values]
    for node in ast.walk(tree):
        if node in pieces:
            continue
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"(torch\.)?_[a-z][\w.]+", str(node.value)):
            found |= set(node.value.split("."))
    return {name for name in found if re.match(r"_[a-zA-Z]", name)}


def test_nothing_else_uses_a_private_name():
    trees = {path: ast.parse(path.read_text()) for path in sources()}
    assert len(trees) > 90
    known = set(OF_OTHERS).union(*map(defined, trees.values()))
    used = {str(path.relative_to(ROOT)): private_names(tree) - known for path, tree in trees.items()}
    assert not {path: names for path, names in used.items() if names}
    for path in trees:
        text = path.read_text()
        assert not re.search(r"torch\.fx\.experimental|triton\.(runtime|tools|compiler|knobs)", text), path
    # the search sees what it is for
    seen = private_names(ast.parse(TORCH_ONLY.read_text()))
    assert {"_C", "_inductor", "_forward_pre_hooks", "_current_level", "_orig_mod", "_cdata"} <= seen


def test_each_name_says_which_test_of_it_fails():
    here = Path(__file__).read_text()
    for path, module in ((TORCH_ONLY, torch_private), (TRITON_ONLY, triton_private)):
        claimed = re.findall(r"\b(test_\w+)\)", path.read_text())
        assert claimed
        assert not [name for name in claimed if f"def {name}(" not in here]
        assert not [name for name in module.__all__ if not re.search(rf"\b{name}\b", here)]
        assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="got 'nonsense'"):
        torch_private.nonsense  # noqa: B018


@pytest.fixture
def compiled_or_not():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_below_autograd_an_op_is_its_own_form():
    x = torch.randn(3, requires_grad=True)
    assert (x * 2).requires_grad
    with torch_private.BelowAutograd():
        assert not (x * 2).requires_grad


def test_the_innermost_transform_is_known():
    keys = []

    def look(x):
        keys.append(torch_private.peek_interpreter_stack().key())
        return x.sum()

    torch.func.grad(look)(torch.ones(2))
    torch.func.vmap(look)(torch.ones(2, 2))
    torch.func.functionalize(look)(torch.ones(2))
    kind = torch_private.TransformType
    assert keys == [kind.Grad, kind.Vmap, kind.Functionalize]


def test_who_sees_a_call_is_known():
    def seen() -> list[bool]:
        return [
            torch_private.count_dispatch_modes() > 0,
            torch_private.count_function_modes() > 0,
            torch_private.is_tracing(),
            torch_private.peek_interpreter_stack() is not None,
        ]

    assert seen() == [False] * 4
    with torch_private.TorchDispatchMode():
        assert seen() == [True, False, False, False]
    with torch.device("cpu"):
        assert seen() == [False, True, False, False]
    found = []

    def look(x):
        found.append(seen())
        return x + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(look, torch.ones(2), check_trace=False)
    torch.func.vmap(look)(torch.ones(2, 2))
    assert found == [[False, False, True, False], [False, False, False, True]]


def test_a_transform_dispatches_on_its_key():
    library = torch.library.Library("torch_private_test", "FRAGMENT")
    calls = []
    library.define("same(Tensor x) -> Tensor")
    library.impl("same", lambda x: x.clone(), "CPU")
    library.impl("same", lambda x: (calls.append(x), x.clone())[1], torch_private.TRANSFORMS_KEY)
    op = torch.ops.torch_private_test.same
    op(torch.ones(2))
    assert not calls
    torch.func.vmap(op)(torch.ones(2, 2))
    assert len(calls) == 1
    library._destroy()


def test_functionalize_unwraps():
    seen = []

    def look(x):
        functional = torch_private.functionalization()
        inside = functional.unwrap_tensors((x,))
        with functional.redispatch_to_next():
            out = inside[0] + 1
        seen.append((x, inside[0]))
        return functional.wrap_tensors(out)

    assert torch.equal(torch.func.functionalize(look)(torch.ones(2)), torch.full((2,), 2.0))
    (outer, inner) = seen[0]
    assert torch._is_functional_tensor(outer)
    assert not torch._is_functional_tensor(inner)


def test_the_level_of_dual_numbers_is_known():
    def level():
        return torch_private.dual_numbers[torch_private.DUAL_LEVEL]

    assert level() == -1
    with forward_ad.dual_level():
        assert level() == 0
    assert level() == -1


def test_the_dictionary_of_the_environment_is_known(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert direct._INTERPRET not in getattr(os.environ, torch_private.VARIABLES)
    assert not direct.is_interpreting()
    for value in ("1", "0"):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        assert direct._INTERPRET in getattr(os.environ, torch_private.VARIABLES)
        assert direct.is_interpreting() == (value == "1")
    monkeypatch.setattr(os, "environ", {"TRITON_INTERPRET": "1"})  # no dictionary inside
    assert direct.is_interpreting()


def test_every_batch_norm_is_one():
    for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LazyBatchNorm2d):
        assert issubclass(norm, torch_private.BatchNorm)
    assert not issubclass(nn.GroupNorm, torch_private.BatchNorm)
    for conv in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d):
        assert issubclass(conv, torch_private.ConvNd)


def test_a_backward_knows_its_thread():
    seen = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda _: seen.append((torch_private.in_backward(), torch_private.backward_number())))
    for _ in range(2):
        (2 * x).backward()
    (first, number), (second, another) = seen
    assert first
    assert second
    assert -1 != number != another != -1
    assert not torch_private.in_backward()
    assert torch_private.backward_number() == -1


def test_a_backward_calls_at_its_end():
    seen, x = [], torch.ones(1, requires_grad=True)

    class Ends:
        def __init__(self, gradient):
            torch_private.queue_callback(self.end)

        def end(self):
            seen.append("end")

        def __del__(self):
            seen.append("dropped")

    y = 2 * x
    y.register_hook(lambda gradient: (Ends(gradient), None)[1])
    x.register_hook(lambda gradient: seen.append("gradient"))
    y.backward(retain_graph=True)
    assert seen == ["gradient", "end", "dropped"]
    x.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        y.backward()
    assert seen[3:] == ["gradient", "dropped"]


def test_what_a_node_calls_is_told_from_a_region(compiled_or_not):
    found = []

    def backend(graph, _):
        found.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    def function(x):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            y = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))
        return y * 2

    torch.compile(function, backend=backend)(torch.ones(2))
    enter, grad = torch_private.AUTOCAST_AND_GRAD_CALLS
    assert enter in found
    assert grad in found
    assert any(isinstance(target, torch_private.HigherOrderOperator) for target in found)
    assert isinstance(torch.ops.aten.add.Tensor, torch_private.OpOverload)
    assert not isinstance(torch.ops.aten.add, torch_private.OpOverload)


def test_fake_tensors_share_the_mode_they_were_made_in():
    mode = torch_private.FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        x = torch.empty(2, 3) + torch.nn.Parameter(torch.ones(3))
    assert isinstance(x, torch_private.FakeTensor)
    assert x.fake_mode is mode


def test_a_registration_is_told():
    told = []
    handle = torch_private.register_module_module_registration_hook(
        lambda parent, name, module: told.append((type(parent), name, module))
    )
    try:
        model = nn.Sequential(nn.ReLU())
        model[0] = nn.Identity()
    finally:
        handle.remove()
    assert [name for _, name, _ in told] == ["0", "0"]
    assert told[-1][2] is model[0]


def test_a_dispatch_mode_sees_each_call():
    class Watching(torch_private.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen = []
    with Watching():
        nn.functional.relu(torch.ones(2, device="meta"))
    assert seen == [torch.ops.aten.ones.default, torch.ops.aten.relu.default]


def test_many_tensors_are_written_at_once():
    tensors, values = [torch.ones(2), torch.ones(2, 3).t()], [torch.full((2,), 2.0), torch.randn(3, 2)]
    torch_private.foreach_copy_(tensors, values)
    assert all(map(torch.equal, tensors, values))
    torch_private.foreach_zero_(tensors)
    assert not any(x.any() for x in tensors)


def test_a_check_of_values_waits_in_a_graph():
    torch_private.assert_async(torch.tensor(True), "fits")
    with pytest.raises(RuntimeError, match="does not fit"):
        torch_private.assert_async(torch.tensor(False), "does not fit")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_integers_are_quantised_as_they_are():
    x = torch_private.quantised_per_tensor(torch.tensor([3, 5], dtype=torch.int8), 0.5, 3)
    assert torch.equal(x.int_repr(), torch.tensor([3, 5], dtype=torch.int8))
    assert torch.equal(x.dequantize(), torch.tensor([0.0, 1.0]))


def test_wrappers_put_their_names_in_the_middle():
    compiled = torch.compile(nn.Linear(1, 1), backend="eager")
    assert type(compiled).__name__ == torch_private.COMPILED_CLASS
    assert f"{torch_private.COMPILED}.weight" in dict(compiled.named_parameters())
    wrapped = checkpoint_wrapper(nn.Linear(1, 1))
    assert torch_private.CHECKPOINTED in torch_private.modules_of(wrapped)
    assert {torch_private.own_name(name) for name in wrapped.state_dict()} == {"weight", "bias"}
    from torch.distributed.fsdp import _common_utils

    assert torch_private.SHARDED == _common_utils.FSDP_WRAPPED_MODULE


def test_a_replica_says_that_it_is_one():
    model = nn.Linear(1, 1)
    assert not hasattr(model, torch_private.REPLICA)
    assert getattr(model._replicate_for_data_parallel(), torch_private.REPLICA)


def test_a_compiled_module_shows():
    plain = nn.Linear(1, 1)
    assert not torch_private.is_compiled(plain)
    assert torch_private.is_compiled(torch.compile(nn.Linear(1, 1)))
    in_place, by_forward, not_compiled = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    in_place.compile()
    by_forward.forward = torch.compile(by_forward.forward)
    not_compiled.forward = torch.compiler.disable(not_compiled.forward)
    assert torch_private.is_compiled(in_place)
    assert torch_private.is_compiled(by_forward)
    assert not torch_private.is_compiled(not_compiled)


def test_a_function_is_traced_into_graphs_alone(compiled_or_not):
    called, traced = [], []

    class Plain(nn.Module):
        def forward(self, x):
            return x + 1

    @torch_private.constant_in_graphs
    def note(number: int) -> bool:
        traced.append(number)
        return True

    def hook(module, args):
        if torch.compiler.is_dynamo_compiling():
            note(7)
        else:
            called.append(module)

    torch_private.run_uncompiled(hook)
    model = Plain()
    model.register_forward_pre_hook(hook)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):  # a compiled frame of the hook itself would see no call
        compiled(torch.ones(1, 1))
    assert (called, traced) == ([model, model], [])
    inlined = torch.compile(lambda x: model(x), backend="eager", fullgraph=True)
    for _ in range(2):
        inlined(torch.ones(1, 1))
    assert (len(called), traced) == (2, [7])


def test_hooks_can_be_guarded(compiled_or_not):
    config = torch_private.dynamo_config
    assert sys.modules[torch_private.DYNAMO_CONFIG] is config

    def outputs(skip):
        before = torch_private.skip_hook_guards(config, skip)
        torch.compiler.reset()
        model = nn.Linear(1, 1, bias=False)
        compiled = torch.compile(model, backend="eager")
        x = torch.ones(1, 1)
        compiled(x)
        model.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
        try:
            return bool(compiled(x).any())
        finally:
            torch_private.skip_hook_guards(config, before)

    assert not outputs(skip=False)
    assert outputs(skip=True)  # what torch does of its own accord: the hook is not seen


def test_sizes_are_marked_dynamic_where_they_can_be(compiled_or_not):
    graphs = []
    compiled = torch.compile(
        lambda x: x + 1, backend=lambda graph, _: (graphs.append(graph), graph.forward)[1]
    )
    for size in (3, 4, 5):
        x = torch.ones(size, 2)
        torch_private.maybe_mark_dynamic(x, 0)
        compiled(x)
    assert len(graphs) == 1


def test_a_module_is_dictionaries():
    model = nn.BatchNorm2d(1)
    model.inner = nn.ReLU()
    first = model.register_forward_pre_hook(print)
    second = model.register_forward_pre_hook(print, with_kwargs=True)
    behind = model.register_forward_hook(print)
    assert list(torch_private.pre_hooks(model)) == [first.id, second.id]
    assert list(torch_private.forward_hooks(model)) == [behind.id]
    given = []
    torch_private.put_forward_hook(model, "ours", lambda *call: given.append(call))
    x = torch.zeros(2, 1, 1, 1)
    out = model(input=x)
    ((module, args, kwargs, got),) = given
    assert module is model
    assert args == ()
    assert kwargs["input"] is x
    assert got is out
    for _ in range(2):
        torch_private.take_forward_hook(model, "ours")
        assert list(torch_private.forward_hooks(model)) == [behind.id]
        assert not model._forward_hooks_with_kwargs
    torch_private.take_pre_hook(model, second.id)
    assert list(torch_private.pre_hooks(model)) == [first.id]
    assert not model._forward_pre_hooks_with_kwargs
    behind.remove()
    first.remove()
    assert torch_private.modules_of(model) == {"inner": model.inner}
    assert torch_private.parameters_of(model)["weight"] is model.weight
    torch_private.buffers_of(model)["running_mean"] = mean = torch.ones(1)
    assert model.running_mean is mean
    assert vars(model)[torch_private.PRE_HOOKS] is torch_private.pre_hooks(model)
    assert vars(model)[torch_private.MODULES] is torch_private.modules_of(model)


def test_views_share_a_storage_key():
    x, other = torch.empty(4, device="meta"), torch.empty(4, device="meta")
    assert torch_private.storage_key(x) == torch_private.storage_key(x[2:])
    assert torch_private.storage_key(x) != torch_private.storage_key(other)


def test_a_write_shows():
    x = torch.zeros(4)
    view = x[2:]
    assert torch_private.version_of(x) == 0
    view.add_(1)
    assert torch_private.version_of(x) == torch_private.version_of(x.detach()) == 1


def test_a_node_that_is_computed_is_known():
    seen, x = [], torch.ones(3, requires_grad=True)
    first = torch_private.next_number()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor, lambda tensor: (seen.append(torch_private.current_node()), tensor)[1]
    ):
        y = x.sin().cos()
    end = torch_private.next_number()
    y.sum().backward()
    numbers = [torch_private.sequence_number(node) for node in seen]
    assert len(numbers) == 2
    assert all(first <= number < end for number in numbers)
    assert torch_private.current_node() is None


def test_a_thread_of_the_engines_shows():
    seen, done = [], threading.Event()

    def look():
        seen.append(torch_private.in_engine())
        done.set()

    _thread.start_new_thread(look, ())
    assert done.wait(30)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [True, False]
    assert not torch_private.in_engine()


def test_nodes_are_numbered():
    weight = torch.ones(2, requires_grad=True)
    first = (weight * 2).grad_fn
    second = (weight * 3).grad_fn
    assert first is not None
    assert second is not None
    (parameter, _), *_ = second.next_functions
    numbers = [torch_private.sequence_number(node) for node in (first, second, parameter)]
    assert numbers == sorted(set(numbers))


def test_a_saved_tensor_can_be_kept_another_way():
    class Squared(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, *grads):
            (x,) = ctx.saved_tensors
            return 2 * x * grads[0]

    weight = torch.ones(2, requires_grad=True)
    x = weight * 3
    for out in (x.square(), Squared.apply(x)):
        node = out.grad_fn
        (name,) = [name for name in dir(type(node)) if name.startswith(torch_private.RAW_SAVED)]
        saved = getattr(node, name)
        (saved,) = saved if isinstance(saved, tuple) else (saved,)
        assert saved.data is x
        assert saved.unpack_hook is None
        saved.register_hooks(lambda _: "kept", lambda kept: torch.full((2,), 5.0))
        assert saved.unpack_hook is not None
        assert torch.autograd.grad(out.sum(), x)[0].tolist() == [10, 10]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert x.square().grad_fn._raw_saved_self.unpack_hook is not None
    # what is written by its own node shows no value of another's
    assert x.exp().grad_fn._raw_saved_result.data is not x


def test_an_op_says_its_schema():
    op = torch.ops.aten.add_.Tensor
    schema = torch_private.schema_of(op)
    assert schema.name == "aten::add_"
    assert schema.is_mutable
    assert len(schema.returns) == 1
    assert [a.name for a in schema.arguments] == ["self", "other", "alpha"]
    assert [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments] == [
        True,
        False,
        False,
    ]
    assert [a.default_value for a in schema.arguments if a.has_default_value()] == [1]
    assert torch_private.name_of_overload(op) == "Tensor"
    assert torch_private.name_of_op(op) == "add_"
    assert torch_private.name_of_op(print) is None


def test_an_exported_graph_can_be_pickled():
    network = torch.export.export(nn.Sequential(nn.Linear(2, 2)), (torch.ones(1, 2),))
    network = network.module(check_guards=False)
    torch_private.forget_tracer(network.graph)
    graph = torch.fx.GraphModule(network, network.graph, "Plain")
    again = pickle.loads(pickle.dumps(graph))
    assert torch.equal(again(torch.ones(1, 2)), network(torch.ones(1, 2)))


def test_an_exported_module_says_its_outputs():
    class Two(nn.Module):
        def forward(self, x):
            return x + 1, x - 1

    one, two = (torch.export.export(m, (torch.ones(2),)).module() for m in (nn.ReLU(), Two()))
    assert torch_private.out_spec(one).is_leaf()
    assert not torch_private.out_spec(two).is_leaf()
    assert torch_private.out_spec(torch.fx.symbolic_trace(nn.ReLU())) is None


def test_the_cache_of_autograd_can_be_left_out():
    config = torch_private.autograd_config
    before = config.enable_autograd_cache
    with config.patch(enable_autograd_cache=not before):
        assert config.enable_autograd_cache is not before
    assert config.enable_autograd_cache is before


def test_inductor_compiles_a_graph(compiled_or_not):
    assert torch_private.list_mode_options("max-autotune")["max_autotune"] is True

    def backend(graph, inputs):
        return torch_private.compile_fx(graph, inputs, config_patches={"fx_graph_cache": False})

    x = torch.randn(3)
    torch.testing.assert_close(torch.compile(lambda x: x.sin() + 1, backend=backend)(x), x.sin() + 1)


def test_inductor_looks_its_forms_up_in_two_tables():
    ops.let_inductor_decompose()
    op = torch.ops.tsm_triton.temporal_shift.default
    assert op in torch_private.decompositions
    assert op in torch_private.select_decomp_table()
    assert op in torch_private.lowerings
    assert callable(torch_private.make_fallback)
    assert torch_private.tag_to_layout_constraint(torch.Tag.needs_exact_strides) is not None
    with pytest.raises(Exception, match="temporal_shift"):  # override_decomp is needed
        torch_private.make_fallback(op, warn=False)


def test_a_package_is_compiled_into_a_file():
    names = inspect.signature(torch_private.aoti_compile_and_package).parameters
    assert {"package_path", "inductor_configs"} <= set(names)
    assert "aot_inductor.metadata" in torch_private.inductor_config.get_config_copy()
    assert "path" in inspect.signature(torch_private.aoti_load_package).parameters


def test_inductor_gives_an_op_the_layout_that_it_asks_for():
    assert callable(torch_private.ExternKernel.require_channels_last)
    assert callable(torch_private.TensorBox.get_size)


def test_a_plan_of_inductor_can_be_counted(compiled_or_not):
    counts = []

    def count(scheduler):
        nodes = [n for n in scheduler.nodes if not isinstance(n, torch_private.NopKernelSchedulerNode)]
        counts.extend(node.get_read_write_buffers_sizes() for node in nodes)
        raise KeyError("counted")

    with (
        replaced.object(torch_private.Scheduler, "codegen", count),
        torch_private.inductor_config.patch(fx_graph_cache=False, force_pointwise_cat=True),
        pytest.raises(Exception, match="counted"),
    ):
        torch.compile(lambda x: x + 1)(torch.ones(1000))
    assert counts == [2 * 4 * 1000]


def test_a_node_can_ask_to_be_computed_again(compiled_or_not):
    first, second = (next(torch_private.checkpointed_regions) for _ in range(2))
    assert first < second
    told = []

    @torch.library.custom_op("torch_private_test::told", mutates_args=())
    def op(x: torch.Tensor) -> torch.Tensor:
        return x.exp()

    op.register_fake(torch.empty_like)
    op.register_autograd(lambda ctx, grad: grad)

    def calls(x):
        assert traceback.has_preserved_node_meta()
        traceback.get_current_meta()["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        return op(x)

    def partition(joint, *args, **named):
        told.extend(n.meta.get("recompute") for n in joint.graph.nodes if "told" in str(n.target))
        return default_partition(joint, *args, **named)

    x = torch.ones(2, requires_grad=True)
    with traceback.preserve_node_meta():
        aot_function(calls, nop, nop, partition_fn=partition)(x).sum().backward()
    assert told == [CheckpointPolicy.MUST_RECOMPUTE]


def test_a_joint_graph_can_be_rewritten(compiled_or_not):
    seen = []

    class Looking(torch_private.CustomGraphPass):
        def __call__(self, graph):
            seen.extend(str(node.target) for node in graph.find_nodes(op="placeholder"))

        def uuid(self):
            return "torch_private_test"

    compiled = torch.compile(lambda x: x.sin().sum(), options={"joint_custom_pre_pass": Looking()})
    compiled(torch.ones(3, requires_grad=True)).backward()
    assert [name.rpartition("_")[0] for name in seen] == ["primals", "tangents"]


def test_a_graph_is_traced_ahead_of_autograd():
    traced = torch_private.make_fx(lambda x: nn.functional.linear(x, x), pre_dispatch=True)(torch.ones(2, 2))
    assert torch.ops.aten.linear.default in [node.target for node in traced.graph.nodes]


def test_a_symbol_is_asked_without_a_guard():
    seen = []

    class Asks(nn.Module):
        def forward(self, x):
            n = x.shape[0]
            seen.extend(torch_private.statically_known_true(c) for c in (n > 0, n > 5, n == 4))
            return x + 1

    batch = torch.export.Dim("batch", min=2, max=16)
    torch.export.export(Asks(), (torch.ones(4, 2),), dynamic_shapes=({0: batch},), strict=False)
    assert seen[:3] == [True, False, False]


def test_a_symbol_has_the_size_of_the_example_and_can_be_asked_without_a_guard():
    seen = []

    class Asks(nn.Module):
        def forward(self, x):
            if isinstance(x, torch_private.FakeTensor):
                seen.append(torch_private.hint_of(x.shape[0]))
                with torch_private.without_guards(x):
                    seen.append(bool(x.shape[0] == 4))
                seen.append([str(guard.expr) for guard in x.fake_mode.shape_env.guards])
            return x + 1

    batch = torch.export.Dim("batch", min=2, max=16)
    torch.export.export(Asks(), (torch.ones(4, 2),), dynamic_shapes=({0: batch},), strict=False)
    assert seen[:3] == [4, True, []]
    fixed = torch_private.FakeTensorMode().from_tensor(torch.ones(2))
    with torch_private.without_guards(fixed):
        assert fixed.shape[0] == 2


def test_a_lowering_can_be_a_graph_of_launches(compiled_or_not):
    # of an operator of aten's, which becomes the graph of another one
    op = torch.ops.aten.trace.default
    given = []

    def lower(x):
        realized = torch_private.ExternKernel.realize_input(x)
        torch_private.as_storage_and_layout(realized, freeze=True)
        plan = torch_private.V.graph
        with torch_private.V.fake_mode:
            fake = torch_private.ir_node_to_tensor(realized)
            graph = torch_private.make_fx(lambda x: (x * 2).sum())(fake)
        size = torch_private.convert_to_symint(realized.get_size()[0])
        out = torch_private.process_subgraph_nodes(graph, [x])
        given.append((fake.stride(), size, realized.get_layout().offset))
        given.append(plan.sizevars.statically_known_multiple_of(size, 3))
        given.append(realized.get_name() in plan.mutated_buffers - plan.unaligned_buffers)
        return out

    def kept(x):
        return NotImplemented

    tables = (torch_private.decompositions, torch_private.select_decomp_table())
    with (
        replaced.dict(torch_private.lowerings, {op: lower}),
        replaced.dict(tables[0], {op: kept}),
        replaced.dict(tables[1], {op: kept}),
        torch_private.inductor_config.patch(fx_graph_cache=False),
    ):
        assert torch.compile(lambda x: x.trace())(torch.arange(9.0).view(3, 3).t()) == 72
    assert given == [((1, 3), 3, 0), True, False]


def test_a_launch_is_noted_in_a_graph():
    table = torch_private.kernel_side_table
    kernel, absent = table.add_kernel("a kernel"), table.add_constant_args({"none": None})
    assert (table.get_kernel(kernel), table.get_constant_args(absent)) == ("a kernel", {"none": None})

    def launched(x):
        torch_private.triton_kernel_wrapper_mutation(
            kernel_idx=kernel,
            constant_args_idx=absent,
            grid=[(x.shape[0], 1, 1)],
            tma_descriptor_metadata={"x": ("stable", ([16, 16],))},
            kwargs={"x": x, "n": 3},
        )
        return x

    with torch_private.FakeTensorMode():
        graph = torch_private.make_fx(launched)(torch.ones(2, 2)).graph
    (node,) = graph.find_nodes(op="call_function", target=torch_private.triton_kernel_wrapper_mutation)
    assert node.kwargs["grid"] == [(2, 1, 1)]
    assert set(node.kwargs["kwargs"]) == {"x", "n"}


def test_a_kernel_of_the_interpreter_shows(monkeypatch):
    def kernel(x_ptr):
        pass

    assert not triton_private.is_interpreted(triton.jit(kernel))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_private.is_interpreted(triton.jit(kernel))


def test_a_tensor_is_described_as_boxes():
    described = triton_private.TensorDescriptor.from_tensor(torch.empty(8, 16), [4, 16])
    boxes = [list(sizes) for sizes in (described.shape, described.strides, described.block_shape)]
    assert boxes == [[8, 16], [16, 1], [4, 16]]


@pytest.mark.cuda
def test_a_compiled_kernel_can_be_launched_alone():
    @triton.jit
    def kernel(x_ptr):
        triton.language.store(x_ptr, 1.0)

    x = torch.zeros(1, device="cuda")
    run = triton_private.launcher(kernel[(1,)](x), (1, 1, 1))
    x.zero_()
    run(x)
    assert x.item() == 1


def test_the_interpreter_can_be_watched():
    builder = triton_private.interpreter_builder()
    assert callable(builder.create_masked_load)
    assert callable(builder.create_masked_store)

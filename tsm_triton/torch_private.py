"""Every private name of torch that we use, and two of Python's: what for, and the test that fails when it changes.

All were seen the same in torch 2.11 and 2.15. The tests named here are those of `tests/test_torch_private.py`, which
hold a name to what we need of it; they also see that no other file of the package, its benchmarks, its sweep and its
examples uses one. What a call of an op needs is the name itself: a wrapper would cost as much as what it wraps. What
takes seconds to import, or brings sympy, comes when it is first asked for.
"""

import pkgutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

# An op's call that autograd need not note goes below it (test_below_autograd_an_op_is_its_own_form).
from torch._C import _AutoDispatchBelowAutograd as BelowAutograd

# The node that this thread's backward computes, None outside of any (test_a_node_that_is_computed_is_known).
from torch._C import _current_autograd_node as current_node

# Which backward runs on this thread, -1 outside of any (test_a_backward_knows_its_thread).
from torch._C import _current_graph_task_id as backward_number

# Whether a call would be seen by a mode or noted by a trace (test_who_sees_a_call_is_known).
from torch._C import _is_tracing as is_tracing
from torch._C import _len_torch_dispatch_stack as count_dispatch_modes
from torch._C import _len_torch_function_stack as count_function_modes

# Dynamo compiles the hooks of a compiled module each as a frame of its own, whose graph would be run ever after
# (test_a_function_is_traced_into_graphs_alone).
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy

# Which of torch.func's transforms is innermost, None outside of them (test_the_innermost_transform_is_known).
from torch._C._functorch import TransformType, peek_interpreter_stack

# What a graph's nodes call (test_what_a_node_calls_is_told_from_a_region).
from torch._ops import HigherOrderOperator, OpOverload

# A network on a GPU captured again without its weights; the fake mode of a graph's inputs
# (test_fake_tensors_share_the_mode_they_were_made_in).
from torch._subclasses import FakeTensor, FakeTensorMode

# Whether a call is inside of forward-mode derivatives: read anew each time (test_the_level_of_dual_numbers_is_known).
from torch.autograd import forward_ad

# What a backward calls at its end (test_a_backward_calls_at_its_end).
from torch.autograd.variable import Variable

# What every batch-norm is, of one axis or three, synchronised or not, and every convolution
# (test_every_batch_norm_is_one).
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as ConvNd

# Documented, and the reason that a replaced module keeps its shift (test_a_registration_is_told).
from torch.nn.modules.module import register_module_module_registration_hook

# Sees each ATen call of a model on the meta device (test_a_dispatch_mode_sees_each_call).
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch._dynamo import config as dynamo_config
    from torch._dynamo import maybe_mark_dynamic
    from torch._functorch import config as autograd_config
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_mutation
    from torch._higher_order_ops.wrap import uid as checkpointed_regions
    from torch._inductor import aoti_compile_and_package, aoti_load_package, list_mode_options
    from torch._inductor import config as inductor_config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.custom_graph_pass import CustomGraphPass
    from torch._inductor.decomposition import decompositions, select_decomp_table
    from torch._inductor.ir import ExternKernel, TensorBox, as_storage_and_layout, ir_node_to_tensor
    from torch._inductor.lowering import (
        lowerings,
        make_fallback,
        process_subgraph_nodes,
        tag_to_layout_constraint,
    )
    from torch._inductor.scheduler import NopKernelSchedulerNode, Scheduler
    from torch._inductor.utils import convert_to_symint
    from torch._inductor.virtualized import V
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import statically_known_true

__all__ = [
    "AUTOCAST_AND_GRAD_CALLS",
    "CHECKPOINTED",
    "COMPILED",
    "COMPILED_CLASS",
    "DUAL_LEVEL",
    "DYNAMO_CONFIG",
    "MODULES",
    "PRE_HOOKS",
    "RAW_SAVED",
    "REPLICA",
    "SHARDED",
    "TRANSFORMS_KEY",
    "VARIABLES",
    "BatchNorm",
    "BelowAutograd",
    "ConvNd",
    "CustomGraphPass",
    "ExternKernel",
    "FakeTensor",
    "FakeTensorMode",
    "HigherOrderOperator",
    "NopKernelSchedulerNode",
    "OpOverload",
    "Scheduler",
    "TensorBox",
    "TorchDispatchMode",
    "TransformType",
    "V",
    "aoti_compile_and_package",
    "aoti_load_package",
    "as_storage_and_layout",
    "assert_async",
    "autograd_config",
    "backward_number",
    "buffers_of",
    "checkpointed_regions",
    "compile_fx",
    "constant_in_graphs",
    "convert_to_symint",
    "count_dispatch_modes",
    "count_function_modes",
    "current_node",
    "decompositions",
    "dual_numbers",
    "dynamo_config",
    "foreach_copy_",
    "foreach_zero_",
    "forget_tracer",
    "forward_hooks",
    "functionalization",
    "hint_of",
    "in_backward",
    "in_engine",
    "inductor_config",
    "ir_node_to_tensor",
    "is_compiled",
    "is_tracing",
    "kernel_side_table",
    "list_mode_options",
    "lowerings",
    "make_fallback",
    "make_fx",
    "maybe_mark_dynamic",
    "modules_of",
    "name_of_op",
    "name_of_overload",
    "next_number",
    "out_spec",
    "own_name",
    "parameters_of",
    "peek_interpreter_stack",
    "pre_hooks",
    "process_subgraph_nodes",
    "put_forward_hook",
    "quantised_per_tensor",
    "queue_callback",
    "register_module_module_registration_hook",
    "run_uncompiled",
    "schema_of",
    "select_decomp_table",
    "sequence_number",
    "skip_hook_guards",
    "statically_known_true",
    "storage_key",
    "tag_to_layout_constraint",
    "take_forward_hook",
    "take_pre_hook",
    "triton_kernel_wrapper_mutation",
    "version_of",
    "without_guards",
]

# name -> where it comes from when it is first asked for
_LATER = {
    # what a package compiled is not what another version of it runs (test_the_cache_of_autograd_can_be_left_out)
    "autograd_config": "torch._functorch.config",
    # whether Dynamo guards hooks, see `skip_hook_guards`; sizes that a graph may take more than one of
    # (test_sizes_are_marked_dynamic_where_they_can_be)
    "dynamo_config": "torch._dynamo.config",
    "maybe_mark_dynamic": "torch._dynamo:maybe_mark_dynamic",
    # numbers of regions that a compiled training step computes again, in their order
    # (test_a_node_can_ask_to_be_computed_again)
    "checkpointed_regions": "torch._higher_order_ops.wrap:uid",
    # the end of our backend, and the options of its modes (test_inductor_compiles_a_graph)
    "compile_fx": "torch._inductor.compile_fx:compile_fx",
    # documented, in a folder with a private name (test_a_package_is_compiled_into_a_file)
    "aoti_compile_and_package": "torch._inductor:aoti_compile_and_package",
    "aoti_load_package": "torch._inductor:aoti_load_package",
    "list_mode_options": "torch._inductor:list_mode_options",
    # a pass over the graph of a forward and its backward (test_a_joint_graph_can_be_rewritten)
    "CustomGraphPass": "torch._inductor.custom_graph_pass:CustomGraphPass",
    # the tables of forms in torch's own operators: the second is a copy of the first, cached at the first compilation;
    # and how Inductor calls an op that stands in them (test_inductor_looks_its_forms_up_in_two_tables)
    "decompositions": "torch._inductor.decomposition:decompositions",
    "select_decomp_table": "torch._inductor.decomposition:select_decomp_table",
    "lowerings": "torch._inductor.lowering:lowerings",
    "make_fallback": "torch._inductor.lowering:make_fallback",
    "tag_to_layout_constraint": "torch._inductor.lowering:tag_to_layout_constraint",
    # maps go into our ops in channels_last (test_inductor_gives_an_op_the_layout_that_it_asks_for)
    "ExternKernel": "torch._inductor.ir:ExternKernel",
    "TensorBox": "torch._inductor.ir:TensorBox",
    # a lowering that looks at the strides of its inputs, and is itself a graph
    # (test_a_lowering_can_be_a_graph_of_launches)
    "V": "torch._inductor.virtualized:V",
    "as_storage_and_layout": "torch._inductor.ir:as_storage_and_layout",
    "convert_to_symint": "torch._inductor.utils:convert_to_symint",
    "ir_node_to_tensor": "torch._inductor.ir:ir_node_to_tensor",
    "process_subgraph_nodes": "torch._inductor.lowering:process_subgraph_nodes",
    # what such a graph launches, and how (test_a_launch_is_noted_in_a_graph)
    "kernel_side_table": "torch._higher_order_ops.triton_kernel_wrap:kernel_side_table",
    "triton_kernel_wrapper_mutation": "torch._higher_order_ops.triton_kernel_wrap:triton_kernel_wrapper_mutation",
    # what a benchmark counts of Inductor's plans (test_a_plan_of_inductor_can_be_counted)
    "inductor_config": "torch._inductor.config",
    "NopKernelSchedulerNode": "torch._inductor.scheduler:NopKernelSchedulerNode",
    "Scheduler": "torch._inductor.scheduler:Scheduler",
    # a graph of Dynamo's as calls of ATen, ahead of autograd (test_a_graph_is_traced_ahead_of_autograd)
    "make_fx": "torch.fx.experimental.proxy_tensor:make_fx",
    # what is true of all sizes that a symbol stands for (test_a_symbol_is_asked_without_a_guard)
    "statically_known_true": "torch.fx.experimental.symbolic_shapes:statically_known_true",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"expected a name of {__name__}, got {name!r}: choose one of __all__")
    return pkgutil.resolve_name(_LATER[name])


# How deep forward-mode derivatives are nested is `dual_numbers[DUAL_LEVEL]`, -1 outside of them.
dual_numbers = vars(forward_ad)
DUAL_LEVEL = "_current_level"
# The dictionary that os.environ keeps (test_the_dictionary_of_the_environment_is_known).
VARIABLES = "_data"
# The dispatch key of torch.func's transforms, while one is active (test_a_transform_dispatches_on_its_key).
TRANSFORMS_KEY = "FuncTorchDynamicLayerFrontMode"
# One launch for many tensors (test_many_tensors_are_written_at_once).
foreach_copy_ = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
foreach_zero_ = torch._foreach_zero_  # pyright: ignore[reportPrivateImportUsage]
# A check of values that waits for the run (test_a_check_of_values_waits_in_a_graph).
assert_async = torch.ops.aten._assert_async.msg
# Integers as a quantised tensor, their zero point kept (test_integers_are_quantised_as_they_are).
quantised_per_tensor = torch.ops.aten._make_per_tensor_quantized_tensor
# What a Dynamo graph enters in place of `with` (test_what_a_node_calls_is_told_from_a_region).
AUTOCAST_AND_GRAD_CALLS = (torch.amp.autocast_mode._enter_autocast, torch._C._set_grad_enabled)


def functionalization() -> Any:
    """How functorch unwraps, runs and wraps an op inside `torch.func.functionalize` (test_functionalize_unwraps)."""
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
    from torch._subclasses.functional_tensor import FunctorchFunctionalizeAPI

    return FunctorchFunctionalizeAPI(retrieve_current_functorch_interpreter())  # type: ignore[arg-type]


# What torch.compile, checkpointing and FSDP put into the middle of a name, and the class that torch.compile wraps in
# (test_wrappers_put_their_names_in_the_middle).
COMPILED = "_orig_mod"
COMPILED_CLASS = "OptimizedModule"
CHECKPOINTED = "_checkpoint_wrapped_module"
SHARDED = "_fsdp_wrapped_module"
# An attribute of DataParallel's copies of a model, one call long (test_a_replica_says_that_it_is_one).
REPLICA = "_is_replica"


def own_name(name: str) -> str:
    """A key or a module's name, as it is without torch's wrappers in the middle.

    Example:
        >>> own_name("layer1._orig_mod.0.conv1.weight")
        'layer1.0.conv1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in (COMPILED, CHECKPOINTED, SHARDED))


def in_backward() -> bool:
    """Whether this thread runs a backward (test_a_backward_knows_its_thread)."""
    return backward_number() != -1


def queue_callback(callback: Callable[[], None]) -> None:
    """Have the backward that runs call this at its end; one that fails drops it (test_a_backward_calls_at_its_end)."""
    Variable._execution_engine.queue_callback(callback)


def in_engine() -> bool:
    """Whether Python did not begin this thread, as autograd's of a GPU (test_a_thread_of_the_engines_shows)."""
    return isinstance(threading.current_thread(), threading._DummyThread)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` wrapped a module, its call or its forward (test_a_compiled_module_shows)."""
    forward = vars(module).get("forward")
    return (
        type(module).__name__ == COMPILED_CLASS
        or module._compiled_call_impl is not None
        # torch.compiler.disable wraps too
        or (hasattr(forward, "_torchdynamo_orig_callable") and not hasattr(forward, "_torchdynamo_disable"))
    )


# Where Dynamo says what it guards, among `sys.modules` once it is imported.
DYNAMO_CONFIG = "torch._dynamo.config"


def skip_hook_guards(config: Any, skip: bool) -> bool:
    """Whether Dynamo's guards leave empty dictionaries of hooks out, from here on; and before
    (test_hooks_can_be_guarded)."""
    before = config.skip_nnmodule_hook_guards
    config.skip_nnmodule_hook_guards = skip
    return before


def constant_in_graphs(function: Any) -> Any:
    """`torch.compiler.assume_constant_result`, which imports Dynamo (test_a_function_is_traced_into_graphs_alone)."""
    function._dynamo_marked_constant = True
    return function


def run_uncompiled(function: Callable[..., Any]) -> None:
    """Have Dynamo compile no frame of a function, nor those below it; into a larger graph it is traced as before
    (test_a_function_is_traced_into_graphs_alone)."""
    skip = _FrameAction.SKIP
    set_code_exec_strategy(function.__code__, _FrameExecStrategy(skip, skip))


# The names in `vars(module)` of two dictionaries that may be replaced as a whole (test_a_module_is_dictionaries).
PRE_HOOKS = "_forward_pre_hooks"
MODULES = "_modules"


def pre_hooks(module: nn.Module) -> dict[int, Any]:
    """A module's forward pre-hooks by their handles' numbers, its own dictionary (test_a_module_is_dictionaries)."""
    return module._forward_pre_hooks


def forward_hooks(module: nn.Module) -> dict[int, Any]:
    """The same of its forward hooks."""
    return module._forward_hooks


def take_pre_hook(module: nn.Module, key: int) -> None:
    """Take a forward pre-hook out, whose handle nobody has."""
    del module._forward_pre_hooks[key]
    module._forward_pre_hooks_with_kwargs.pop(key, None)


def put_forward_hook(module: nn.Module, key: Any, hook: Callable[..., None]) -> None:
    """Put a forward hook that takes keywords where it is found again: a handle would be one more thing to hold."""
    hooks: dict[Any, Any] = module._forward_hooks
    hooks[key] = hook
    with_kwargs: dict[Any, bool] = module._forward_hooks_with_kwargs
    with_kwargs[key] = True


def take_forward_hook(module: nn.Module, key: Any) -> None:
    """Take it out, if it is there."""
    module._forward_hooks.pop(key, None)
    module._forward_hooks_with_kwargs.pop(key, None)
    module._forward_hooks_always_called.pop(key, None)


def modules_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """A module's own modules by name, its own dictionary, past what a wrapper answers for what it wraps."""
    return module._modules


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The same of its parameters."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The same of its buffers."""
    return module._buffers


# How the attributes of a node of autograd begin that are its saved tensors, one or a tuple: `data`, the hook that is
# there, and `register_hooks`, which has it keep something else (test_a_saved_tensor_can_be_kept_another_way).
RAW_SAVED = "_raw_saved_"


def sequence_number(node: torch.autograd.graph.Node) -> int:
    """Larger for each node that a thread makes, largest for those of parameters (test_nodes_are_numbered)."""
    return node._sequence_nr()


def next_number() -> int:
    """Of the node that this thread makes next (test_nodes_are_numbered)."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


def version_of(tensor: Tensor) -> int:
    """How often a tensor or a view of it was written in place (test_a_write_shows)."""
    return tensor._version


def storage_key(tensor: Tensor) -> int:
    """What tensors of one storage have alike, on the meta device too (test_views_share_a_storage_key)."""
    return tensor.untyped_storage()._cdata


def schema_of(op: Any) -> Any:
    """The schema of an overload: its name, arguments, returns, what it writes (test_an_op_says_its_schema)."""
    return op._schema


def name_of_overload(op: Any) -> str:
    """`Tensor` of `aten.add.Tensor`."""
    return op._overloadname


def name_of_op(op: Any) -> str | None:
    """`add` of `aten.add.Tensor`, None of what is no op of torch's."""
    return getattr(op, "_opname", None)


def hint_of(size: torch.SymInt) -> int:
    """The example's size where a graph has a symbol, asked without a guard
    (test_a_symbol_has_the_size_of_the_example_and_can_be_asked_without_a_guard).

    A symbol that has none, the count of what a mask selects, say, is taken for thousands, as Inductor takes it.
    """
    found = size.node.hint
    return 8192 if found is None else int(found)


def without_guards(x: Any) -> AbstractContextManager[Any]:
    """What a fake tensor's symbols are asked inside of it becomes no guard
    (test_a_symbol_has_the_size_of_the_example_and_can_be_asked_without_a_guard)."""
    symbols = x.fake_mode.shape_env
    return nullcontext() if symbols is None else symbols.suppress_guards()


def forget_tracer(graph: torch.fx.Graph) -> None:
    """Have a graph's pickle traced again by torch.fx's own tracer (test_an_exported_graph_can_be_pickled)."""
    graph._tracer_cls = None


def out_spec(network: torch.fx.GraphModule) -> Any:
    """How the outputs of an exported module are nested, None of another (test_an_exported_module_says_its_outputs)."""
    return getattr(network, "_out_spec", None)

"""Each kernel through the launchers of the package, on a GPU: OUT=folder python kernels.py [SECTION,...], from the checkout."""

import json, os, sys, time, traceback

HERE = os.getcwd()  # the checkout
sys.path.insert(0, HERE)
OUT = os.environ.get("OUT", "results")
os.makedirs(OUT, exist_ok=True)
from concurrent.futures import ThreadPoolExecutor
import torch, triton
import torch.nn.functional as F
from torch import channels_last
import tsm_triton, tsm_triton.reference
from tsm_triton import ops, temporal_shift
from tsm_triton.functional import residual_shift
from tsm_triton.kernels import (
    depthwise as D,
    residual_shift as KR,
    shift_conv1x1 as K,
    shift_conv1x1_tma as E,
    stem as S,
    temporal_shift as KS,
)

torch.backends.cudnn.benchmark = True
BF, T, N = torch.bfloat16, 8, 32
SECTIONS = sys.argv[1].split(",") if len(sys.argv) > 1 else ["conv", "stem", "depthwise", "rows", "host"]
START, RESULTS = time.time(), {}
K._shift_conv1x1_kernel.cache_results = False
torch.manual_seed(0)


def nhwc(n, c, s, k=1):
    return [
        torch.randn(n, c, s, s, device="cuda", dtype=BF).contiguous(memory_format=channels_last)
        for _ in range(k)
    ]


def rnd(*shape, by=1.0):
    return torch.randn(*shape, device="cuda", dtype=BF) / by


def err(got, want):
    return ((got.float() - want.float()).norm() / want.float().norm()).item()


def graphed(call, xs, reps=6):
    """us of one call out of a CUDA graph of reps calls over rotating inputs."""
    call(xs[0])
    torch.cuda.synchronize()
    s = torch.cuda.Stream()
    s.wait_stream(torch.cuda.current_stream())
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g, stream=s):
        for i in range(reps):
            call(xs[i % len(xs)])
    g.replay()
    torch.cuda.synchronize()
    out = []
    for _ in range(11):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        g.replay()
        b.record()
        b.synchronize()
        out.append(a.elapsed_time(b) * 1e3 / reps)
    del g
    return sorted(out)[5]


def repeats(call, x, times=15):
    """Whether a launch gives the same bits again and again: a race does not."""
    first = call(x)
    return all(torch.equal(call(x), first) for _ in range(times))


def row(section, name, ours, of, what, goal, **more):
    r = {"case": name, "us": ours, what: of, "ratio": ours / of, "goal": goal, **more}
    RESULTS.setdefault(section, []).append(r)
    json.dump(RESULTS, open(f"{OUT}/kernels.json", "w"), indent=1)
    extra = " ".join(
        f"{k} {v:.1f}"
        if isinstance(v, float) and v > 1
        else f"{k} {v:.4f}"
        if isinstance(v, float)
        else f"{k} {v}"
        for k, v in more.items()
    )
    print(
        f"{section:10}{name:22}{ours:8.1f} us {ours / of:6.3f} of {what} {of:7.1f}  goal {goal}  {extra}",
        flush=True,
    )


def par(calls):
    """Compile side by side what tunes nothing."""
    t0 = time.time()
    bad = []

    def one(f):
        try:
            torch.cuda.set_device(0)
            f()
        except Exception as e:
            bad.append(f"{type(e).__name__} {str(e)[:160]}")

    with ThreadPoolExecutor(12) as ex:
        list(ex.map(one, calls))
    torch.cuda.synchronize()
    print(f"# {len(calls)} compiled in {time.time() - t0:.0f} s {bad[:3]}", flush=True)


C1 = [
    (64, 64, 56, 1.05),
    (256, 64, 56, 1.05),
    (256, 128, 56, 1.05),
    (512, 128, 28, 1.05),
    (512, 256, 28, 1.05),
    (1024, 256, 14, 1.2),
    (1024, 512, 14, 1.2),
    (2048, 512, 7, 1.2),
]
C3 = [(64, 256, 56, 1.25), (128, 512, 28, 1.25), (256, 1024, 14, 1.25), (512, 2048, 7, 0)]


def conv():
    data = {}
    for ci, co, s, goal in C1 + C3:
        added = (ci, co, s, goal) in C3
        xs = nhwc(N * T, ci, s, 2)
        data[ci, co, s] = (
            xs,
            rnd(co, ci, by=ci**0.5),
            rnd(co),
            nhwc(N * T, co, s)[0] if added else None,
            0 if added else ci // 8,
            goal,
        )
    call = lambda d, x: ops.shift_conv1x1(x, d[1], d[2], d[3], T, d[4], d[4], False, "relu")

    def uses_tma(d):
        ci, co = d[0][0].shape[1], d[1].shape[0]
        px = d[0][0].shape[2] ** 2
        cl = T * px if d[4] else N * T * px
        return E.takes(d[0][0], d[1], d[3], d[4], 2 * d[4]) and E.tile_for(
            ci,
            co,
            N * T * px // cl,
            cl,
            d[3] is not None,
            torch.cuda.get_device_properties(0).multi_processor_count,
        )

    par([lambda d=d: call(d, d[0][0]) for d in data.values() if uses_tma(d)])
    tma = K.has_copy_engine
    bytes_per_us = bandwidth()
    for (ci, co, s), d in data.items():
        xs, w, b, idn, f, goal = d
        rows = N * T * s * s
        w4 = w.view(co, ci, 1, 1)
        tile = uses_tma(d)
        got = call(d, xs[0])
        want = F.conv2d((temporal_shift(xs[0], T) if f else xs[0]).float(), w4.float(), b.float())
        want = F.relu(want if idn is None else want + idn)
        cudnn = graphed(lambda x: F.conv2d(x, w4), xs)
        e = err(got, want)
        same = repeats(lambda x: call(d, x), xs[0]) if tile else None
        ours = graphed(lambda x: call(d, x), xs)
        K.has_copy_engine = lambda _: False
        t0 = time.time()
        plain = ours
        if tile:
            call(d, xs[0])
            torch.cuda.synchronize()
        tuned = time.time() - t0
        if tile:
            plain = graphed(lambda x: call(d, x), xs)
        K.has_copy_engine = tma
        best = K._shift_conv1x1_kernel.best_config
        nbytes = 2 * rows * (ci + co * (2 if idn is not None else 1))
        floor = max(nbytes / bytes_per_us, 2 * rows * ci * co / 790e6)
        pass_ = cudnn + 4 * rows * co * (1.5 if idn is not None else 1) / bytes_per_us
        row(
            "c3" if idn is not None else "c1",
            f"{ci}->{co}@{s}",
            ours,
            floor if idn is not None else cudnn,
            "floor" if idn is not None else "cudnn",
            f"{goal}" if goal else "conv + pass",
            err=e,
            same_bits=same,
            floor=floor,
            cudnn=cudnn,
            conv_and_pass=pass_,
            plain=plain,
            tune_s=round(tuned, 2),
            plain_tile=f"{best.kwargs['BLOCK_M']}x{best.kwargs['BLOCK_N']}",
            tile=str(tuple(tile)) if tile else "plain",
        )
        assert e < 1e-2, "WRONG"
    del data


def bandwidth():
    x = torch.empty(2**28, device="cuda", dtype=torch.int8).view(16, -1)
    ys = [torch.empty_like(x) for _ in range(2)]
    v = 2 * x.nbytes / graphed(lambda y: y.copy_(x), ys)
    print(f"# copy {v / 1e6:.2f} TB/s", flush=True)
    return v


def stem():
    xs = nhwc(N * T, 3, 224, 2)
    cases = {"7x7 64": (7, 64, 3, 300), "3x3 32": (3, 32, 1, "-")}
    for name, (k, co, p, goal) in cases.items():
        w, b = rnd(co, 3, k, k, by=10), rnd(co)
        wc = w.contiguous(memory_format=channels_last)
        call = lambda x: S.stem_convolution(x, w, b, 2, p, "relu")
        e = err(call(xs[0])[:16], F.relu(F.conv2d(xs[0][:16].float(), w.float(), b.float(), 2, p)))
        cudnn = graphed(
            lambda x: torch.ops.aten.cudnn_convolution_relu(x, wc, b, [2, 2], [p, p], [1, 1], 1), xs, 3
        )
        row(
            "stem",
            name,
            graphed(call, xs, 4),
            cudnn,
            "cudnn relu",
            f"{goal} us",
            err=e,
            same_bits=repeats(call, xs[0], 5),
            arranging=graphed(lambda x: S.arranged(w, 2, p), xs, 4),
        )
        assert e < 1e-2, "WRONG"


MBV2 = {
    (32, 112, 1): 1,
    (96, 112, 2): 1,
    (144, 56, 1): 1,
    (144, 56, 2): 1,
    (192, 28, 1): 2,
    (192, 28, 2): 1,
    (384, 14, 1): 4,
    (576, 14, 1): 2,
    (576, 14, 2): 1,
    (960, 7, 1): 3,
}


def depthwise():
    total = {"ours": 0.0, "cudnn": 0.0, "pass": 0.0}
    data = {(c, s, st): (nhwc(N * T, c, s, 2), rnd(c, 1, 3, 3, by=3), rnd(c)) for c, s, st in MBV2}
    par(
        [
            lambda k=k, d=d: D.depthwise_convolution(d[0][0], d[1], d[2], k[2], 1, 1, "relu6")
            for k, d in data.items()
        ]
    )
    for (c, s, st), (xs, w, b) in data.items():
        call = lambda x: D.depthwise_convolution(x, w, b, st, 1, 1, "relu6")
        bare = lambda x: F.conv2d(x, w, None, st, 1, 1, c)
        e = err(call(xs[0])[:16], F.relu6(F.conv2d(xs[0][:16].float(), w.float(), b.float(), st, 1, 1, c)))
        out = bare(xs[0])
        o2 = torch.empty_like(out)
        ours, cudnn, one_pass = (
            graphed(call, xs, 4),
            graphed(bare, xs, 4),
            graphed(lambda x: o2.copy_(out), xs, 4),
        )
        m = MBV2[c, s, st]
        for k, v in (("ours", ours), ("cudnn", cudnn), ("pass", one_pass)):
            total[k] += m * v
        row(
            "depthwise",
            f"{c}@{s} /{st}",
            ours,
            cudnn,
            "cudnn bare",
            "below + pass",
            conv_and_pass=cudnn + one_pass,
            err=e,
            floor_3=(xs[0].nbytes + out.nbytes) / 3e6,
        )
        assert e < 1e-2, "WRONG"
    row(
        "depthwise",
        "all 17",
        total["ours"],
        total["cudnn"],
        "cudnn bare",
        "1,314 + pass",
        conv_and_pass=total["cudnn"] + total["pass"],
    )


def rows():
    for n, c, s in [(256, 64, 56), (256, 256, 56), (256, 512, 28), (256, 1024, 14), (256, 2048, 7)]:
        xs = nhwc(n, c, s, 3)
        o = torch.empty_like(xs[0])
        sc, bi = torch.randn(c, device="cuda"), torch.randn(c, device="cuda")
        copy = graphed(lambda x: o.copy_(x), xs)
        call = lambda x: residual_shift(x, xs[1], T, scale=sc, bias=bi)
        right = torch.equal(
            temporal_shift(xs[0], T), tsm_triton.reference.temporal_shift(xs[0], T, c // 8, c // 8)
        )
        y, sh = call(xs[0])
        right &= torch.equal(sh, temporal_shift(y, T))
        KR.GATHER_CHANNELS = 0
        y2, sh2 = call(xs[0])
        scatter = graphed(call, xs[:1])
        KR.GATHER_CHANNELS = 64
        right &= torch.equal(y, y2) and torch.equal(sh, sh2)
        shift, res = graphed(lambda x: temporal_shift(x, T), xs), graphed(call, xs[:1])
        row("shift", f"{n},{c},{s}", shift, copy, "copy", "1 / 0.95", of_copy=copy / shift, right=right)
        row(
            "residual",
            f"{n},{c},{s}",
            res,
            2 * copy,
            "2 copies",
            "1 / 0.95",
            of_copy=2 * copy / res,
            scatter=scatter,
        )
        assert right, "WRONG"


def host():
    from benchmarks.baselines import SHIFTS

    x = torch.randn(16, 64, 4, 4, device="cuda", dtype=BF).contiguous(memory_format=channels_last)
    xg = x.clone().requires_grad_()
    w = rnd(64, 64)
    w4 = w.view(64, 64, 1, 1)
    calls = {
        "relu": lambda: torch.relu(x),
        "conv2d 1x1": lambda: F.conv2d(x, w4),
        "functional": lambda: temporal_shift(x, 8),
        "functional grad": lambda: temporal_shift(xg, 8),
        "op": lambda: ops.temporal_shift(x, 8, 8, 8, False, 1),
        "launcher": lambda: KS.temporal_shift(x, 8, 8, 8, False, 1),
        "slicing": lambda: SHIFTS["slicing"](x, 8, 8),
        "conv op": lambda: ops.shift_conv1x1(x, w, None, None, 8, 8, 8, False, "relu"),
        "residual op": lambda: ops.residual_shift(x, None, None, x, 8, 8, 8, False, "relu"),
        "empty_like": lambda: torch.empty_like(x),
    }
    KS._PLANS.clear()
    KS.temporal_shift(x, 8, 8, 8, False, 1)
    assert len(KS._PLANS) == 1, "no plan was kept"
    plan = next(iter(KS._PLANS.values()))
    o = torch.empty_like(x)
    calls["plan.run"] = lambda: plan.run(x, o, None, *plan.arguments)
    real, plans = plan.run, KS._PLANS
    used = []
    plans[next(iter(plans))] = plan._replace(run=lambda *a: (used.append(1), real(*a)))
    KS.temporal_shift(x, 8, 8, 8, False, 1)
    print("# plan used", len(used))
    plans[next(iter(plans))] = plan
    goals = {"functional": 25, "functional grad": 45}

    def one(f):
        for _ in range(200):
            f()
        torch.cuda.synchronize()
        ts = []
        for _ in range(9):
            t0 = time.perf_counter()
            for _ in range(200):
                f()
            ts.append((time.perf_counter() - t0) * 5e3)
            torch.cuda.synchronize()
        return sorted(ts)[4]

    relu = one(calls["relu"])
    for name, f in calls.items():
        row("host", name, one(f), relu, "relu", goals.get(name, "-"))


print("#", torch.__version__, triton.__version__, torch.cuda.get_device_name(), flush=True)
for name in SECTIONS:
    t0 = time.time()
    try:
        globals()[name]()
    except Exception:
        print("FAILED", name)
        traceback.print_exc(limit=4)
    torch.cuda.empty_cache()
    print(f"# {name} {time.time() - t0:.0f} s, {time.time() - START:.0f} in all", flush=True)

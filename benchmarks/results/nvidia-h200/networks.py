"""OUT=folder python networks.py [--limit 170] [--build 100] [--sections a,b], from the checkout: whole networks on a GPU.

Sections are processes: all build side by side, then each times alone. Results in $OUT/<section>.json as they come,
logs in $OUT/<section>.log; the table is printed as each section ends.
"""

import argparse, copy, json, os, subprocess, sys, time, traceback

HERE = os.getcwd()  # the checkout
OUT = os.environ.get("OUT", "results")
GATE = os.environ.get("GATE", f"{OUT}/gate")
SECTIONS = ["time_resnet50", "time_mobilenetv2_100", "right", "streams", "training"]


def drive(limit, build, names):
    os.makedirs(OUT, exist_ok=True)
    os.makedirs(GATE, exist_ok=True)
    env = {
        **os.environ,
        "GATE": GATE,
        "OUT": OUT,
        "PYTHONPATH": HERE,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "2",
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
    }
    start = time.time()
    logs = {n: open(f"{OUT}/{n}.log", "w") for n in names}
    procs = {
        n: subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--one", n],
            env=env,
            stdout=logs[n],
            stderr=subprocess.STDOUT,
        )
        for n in names
    }
    ready = lambda n: os.path.exists(f"{GATE}/{n}.ready") or procs[n].poll() is not None
    while time.time() - start < build and not all(map(ready, names)):
        time.sleep(0.2)
    print(
        f"built in {time.time() - start:.0f} s; not ready: {[n for n in names if not ready(n)]}", flush=True
    )
    for n in sorted(names, key=lambda n: (not ready(n), names.index(n))):
        if procs[n].poll() is None:
            open(f"{GATE}/{n}.go", "w").close()
            try:
                procs[n].wait(max(5, limit - (time.time() - start)))
            except subprocess.TimeoutExpired:
                procs[n].kill()
                print("KILLED", n)
        text = open(f"{OUT}/{n}.log").read()
        print(
            f"===== {n} rc {procs[n].poll()} at {time.time() - start:.0f} s\n"
            + "\n".join(l for l in text.splitlines() if "Warning" not in l)[-5500:],
            flush=True,
        )


def main_one(name):
    import warnings

    warnings.simplefilter("ignore")
    import timm, torch
    from torch import channels_last

    torch.backends.cudnn.benchmark = True
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 1000
    try:
        torch._dynamo.config.skip_nnmodule_hook_guards = False  # a patched model is not its unpatched twin
    except Exception:
        pass
    import tsm_triton
    from tsm_triton.fusion.inductor import compile_graph
    from tsm_triton.kernels import shift_conv1x1 as K

    T = 8
    BF = torch.bfloat16
    torch.manual_seed(0)
    results = {}
    print(torch.__version__, torch.cuda.get_device_name(), flush=True)

    def save(key, value):
        results[key] = value
        json.dump(results, open(f"{OUT}/{name}.json", "w"), indent=1)

    def part(title, f, *a):
        t = time.time()
        try:
            r = f(*a)
            save(title, r)
            print(
                f"{title}: {r if not isinstance(r, str) else r[:1800]}  [{time.time() - t:.1f}s]", flush=True
            )
            return r
        except Exception as e:
            print(f"FAILED {title} [{time.time() - t:.1f}s]: {type(e).__name__}: {str(e)[:700]}", flush=True)
            traceback.print_exc(limit=-5)
            c = e.__cause__
            while c is not None:
                print("  cause", type(c).__name__, str(c)[:700], flush=True)
                c = c.__cause__
            save(title, f"FAILED {type(e).__name__}: {str(e)[:300]}")

    def gate():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        open(f"{GATE}/{name}.ready", "w").close()
        while not os.path.exists(f"{GATE}/{name}.go"):
            time.sleep(0.05)
        try:
            K._shift_conv1x1_kernel.cache.clear()
        except Exception:
            pass

    def net(model, train=False, **kw):
        m = timm.create_model(model, **kw)
        m = m.train() if train else m.eval()
        for mod in m.modules():
            if isinstance(mod, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(mod.weight)
                torch.nn.init.normal_(mod.bias, std=0.1)
                mod.running_mean.normal_(0, 0.1)
                mod.running_var.uniform_(0.8, 1.2)
        return m.to("cuda", BF).to(memory_format=channels_last)

    def frames(n, size=224, k=1, c=3):
        xs = [
            torch.randn(
                n, c, *(size if isinstance(size, tuple) else (size, size)), device="cuda", dtype=BF
            ).contiguous(memory_format=channels_last)
            for _ in range(k)
        ]
        return xs if k > 1 else xs[0]

    def err(got, want):
        return round(((got.float() - want.float()).norm() / want.float().norm()).item(), 5)

    def graphed(call, xs, reps=3):
        """us a call out of a CUDA graph."""
        for x in xs:
            call(x)
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
        for _ in range(7):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            g.replay()
            b.record()
            b.synchronize()
            out.append(a.elapsed_time(b) * 1e3 / reps)
        return round(sorted(out)[3], 1)

    def wall(call, xs, reps=10):
        """us a call, host included: many calls, one synchronisation."""
        for x in xs:
            call(x)
        torch.cuda.synchronize()
        out = []
        for _ in range(3):
            t0 = time.perf_counter()
            for i in range(reps):
                call(xs[i % len(xs)])
            torch.cuda.synchronize()
            out.append((time.perf_counter() - t0) * 1e6 / reps)
        return round(sorted(out)[1], 1)

    def profile(call, x, top=16):
        from torch.profiler import ProfilerActivity, profile as P

        for _ in range(2):
            call(x)
        torch.cuda.synchronize()
        with P(activities=[ProfilerActivity.CUDA]) as p:
            for _ in range(2):
                call(x)
            torch.cuda.synchronize()
        rows = {}
        for e in p.events():
            if "CUDA" in str(e.device_type):
                r = rows.setdefault(e.name, [0, 0.0])
                r[0] += 1
                r[1] += e.time_range.elapsed_us()
        rows = sorted(
            ((k[:110], c / 2, round(us / 2, 1)) for k, (c, us) in rows.items()), key=lambda r: -r[2]
        )
        print("  kernels us", round(sum(r[2] for r in rows)))
        [print(f"   {r[2]:8.1f} x{r[1]:<5.1f} {r[0][:96]}") for r in rows[:top]]
        sys.stdout.flush()
        return rows[:40]

    @torch.no_grad()
    def times(model):
        plain = net(model)
        patched = tsm_triton.patch(copy.deepcopy(plain), T)
        xs = frames(32 * T, k=2)
        want = part("eager patched", lambda: patched(xs[0]).float().norm().item()) and patched(xs[0])
        forms = {}

        def build(title, make):
            def f():
                call = make()
                got = call(xs[0])
                forms[title] = call
                return {"error": err(got, want)}

            part("build " + title, f)

        built = {}

        def fused():
            built["f"] = tsm_triton.fuse(patched, example_input=xs[0])
            print(built["f"].report, flush=True)
            return built["f"]

        build("fused", fused)
        build("fused compiled", lambda: torch.compile(built["f"], dynamic=False))
        build("backend", lambda: torch.compile(patched, backend=compile_graph, dynamic=False))
        build("unshifted compiled", lambda: torch.compile(plain, dynamic=False))
        gate()
        order = ["unshifted compiled", "fused compiled", "backend", "fused"]
        for k in [o for o in order if o in forms]:
            part("graph us " + k, graphed, forms[k], xs)
            part("wall us " + k, wall, forms[k], xs)
        base = results.get("graph us unshifted compiled")
        for k in order:
            g, w = results.get("graph us " + k), results.get("wall us " + k)
            if isinstance(g, float) and isinstance(base, float):
                print(
                    f"TABLE {model:<16} {k:<20} graph {g:9.1f} us  wall {w} us  {base / g:.3f} x unshifted compiled",
                    flush=True,
                )
        for k in ("fused compiled", "backend", "unshifted compiled"):
            if k in forms:
                part("profile " + k, lambda: profile(forms[k], xs[0]) and "see above")

    @torch.no_grad()
    def right():
        from tsm_triton import ops

        def one(model, size=224):
            m = tsm_triton.patch(net(model), T)
            x = frames(2 * T, size)
            f = tsm_triton.fuse(m, example_input=x)
            r = {
                "report": str(f.report).splitlines()[0],
                "error": err(f(x), m(x)),
                "layout": [list(f(x).stride())],
            }
            with tsm_triton.shift_disabled(m):
                r["unshifted differs"] = err(m(x), f(x))
            for n in (1, 5):
                y = frames(n * T, size)
                r[f"error N={n}"] = err(f(y), m(y))
            try:
                y = frames(T, (192, 160))
                r["error 192x160"] = err(f(y), m(y))
            except Exception as e:
                r["error 192x160"] = f"{type(e).__name__}: {str(e)[:200]}"
            left = [l for l in str(f.report).splitlines() if l.startswith("left")]
            if left:
                print(model, *left[:6], sep="\n   ", flush=True)
            return r

        for model in (
            "resnet50",
            "resnet18",
            "mobilenetv2_100",
            "mobilenetv3_large_100",
            "efficientnet_b0",
            "regnety_002",
            "convnext_atto",
        ):
            part(model, one, model)

        def backend(model):
            torch.compiler.reset()
            m = tsm_triton.patch(net(model), T)
            c = torch.compile(m, backend=compile_graph)
            r = {}
            for n in (2, 1, 3):
                y = frames(n * T)
                r[f"error N={n}"] = err(c(y), m(y))
            return r

        for model in ("resnet18", "mobilenetv2_100"):
            part("backend " + model, backend, model)
        gate()

    @torch.no_grad()
    def streams():
        def one(model, verify_only=True):
            m = tsm_triton.patch(net(model), direction="causal")
            plain = net(model)
            x = frames(1, k=3)
            s, f = tsm_triton.Streaming(m), tsm_triton.Streaming(m, fused=True)
            r = {}
            r["errors"] = [err(f(y), s(y)) for y in x]
            r["report"] = str(f.report).splitlines()[0] if hasattr(f, "report") else ""
            return r

        for model in ("resnet18", "resnet50", "mobilenetv2_100"):
            part("stream " + model, one, model)
        from tsm_triton.streaming.fused_step import FusedStep
        from tsm_triton.streaming.step import StreamStep

        calls = {}

        def build(model):
            m = tsm_triton.patch(net(model), direction="causal")
            plain = net(model)
            x = frames(1)
            f, s = FusedStep(m), StreamStep(m)
            st, fst = s.init_state(x), f.init_state(x)
            calls[model] = {
                "unshifted eager": plain,
                "unshifted compiled": torch.compile(plain, dynamic=False),
            }
            cs, cf = torch.compile(s, dynamic=False), torch.compile(f, dynamic=False)
            calls[model].update(
                {
                    "step eager": lambda x: s(x, st)[0],
                    "step compiled": lambda x: cs(x, st)[0],
                    "fused": lambda x: f(x, fst)[0],
                    "fused compiled": lambda x: cf(x, fst)[0],
                }
            )
            want = s(x, st)[0]
            return {k: err(c(x), want) for k, c in calls[model].items() if "unshifted" not in k} | {
                "unshifted": err(calls[model]["unshifted compiled"](x), want)
            }

        for model in ("resnet50", "mobilenetv2_100"):
            part("build " + model, build, model)
        gate()
        for model in calls:
            x = frames(1, k=2)
            for k, c in calls[model].items():
                part(f"graph us {model} {k}", graphed, c, x, 4)

    def training():
        def one():
            m = net("resnet50", train=True, num_classes=174)
            p = tsm_triton.patch(copy.deepcopy(m), T)
            x = frames(16 * T)
            calls = {
                "unshifted compiled": torch.compile(m, dynamic=False),
                "backend": torch.compile(p, backend=compile_graph, dynamic=False),
            }

            def step(c):
                return lambda x: c(x).float().square().mean().backward()

            for k, c in calls.items():
                step(c)(x)
            gate()
            return {
                k: {"wall us": wall(step(c), [x], 5)}
                | {"kernels": round(sum(r[2] for r in profile(step(c), x, 8)))}
                for k, c in calls.items()
            }

        part("training", one)

    if name.startswith("time_"):
        times(name[5:])
    else:
        locals()[name]()


p = argparse.ArgumentParser()
p.add_argument("--limit", type=float, default=170)
p.add_argument("--build", type=float, default=100)
p.add_argument("--sections", default=",".join(SECTIONS))
p.add_argument("--one")
a = p.parse_args()
if a.one:
    try:
        main_one(a.one)
    except Exception:
        traceback.print_exc(limit=-8)
        sys.exit(1)
else:
    drive(a.limit, a.build, a.sections.split(","))

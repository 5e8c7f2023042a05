"""The output of nccl-tests is read by its header, and refused unless it is of one all-reduce."""

import tomllib
from pathlib import Path

import pytest

from calibration.fit.inputs import fit_inputs
from calibration.fit.nccl_tests import read_nccl_tests
from calibration.records.jsonl import RecordError
from perfmodel import catalog

SIZES = {65536: 20.0, 1048576: 30.0, 16777216: 100.0, 268435456: 1000.0}


def output(
    *,
    ranks: int = 8,
    name: str | None = "all_reduce_perf",
    redop: str = "sum",
    root: str | None = "-1",
    factor: float | None = None,
    hosts: int = 1,
    device: str = "NVIDIA H100 80GB HBM3",
    scale: float = 1.0,
    slow: float = 1.0,
) -> str:
    """A run of nccl-tests; `factor` is bus over algorithm bandwidth.

    `scale` multiplies the times, `slow` divides the bandwidths as well.
    """
    factor = 2 * (ranks - 1) / max(ranks, 1) if factor is None else factor
    lines = [] if name is None else [f"# Collective test starting: {name}"]
    lines += ["# nThread 1 nGpus 8 minBytes 65536", "# Using devices"]
    lines += [
        f"#  Rank {i:2} Group  0 Pid {300 + i} on host{i % hosts} device {i:2} [0x{i}0] {device}"
        for i in range(ranks)
    ]
    half = "time   algbw   busbw  #wrong"
    lines.append(f"# size count type redop {'' if root is None else 'root'} {half} {half}")
    lines.append("#  (B) (elements)   (us)  (GB/s)  (GB/s)    (us)  (GB/s)  (GB/s)")
    for size, time in SIZES.items():
        rate = size / (time * slow) / 1e3
        half = f"{time * slow * scale:.2f} {rate:.2f} {rate * factor:.2f}"
        lines.append(f" {size} {size // 4} float {redop} {root or ''} {half} 0 {half} N/A")
    return "\n".join([*lines, "# Out of bounds values : 0 OK", ""])


def read(tmp_path: Path, text: str, gpu: str = "h100-sxm") -> dict[int, float]:
    path = tmp_path / "run.txt"
    path.write_text(text)
    return {r["message_bytes"]: r.seconds for r in read_nccl_tests(path, catalog.gpu(gpu))}


@pytest.mark.parametrize(
    "line",
    ["[1,0]<stdout>:{}", "[1,12]<stdout>: {}", "0: {}", " 3: {}", "\x1b[32m{}\x1b[0m",
     "2026-11-28T12:00:00.123Z stdout F {}", "nccl-1  | {}", "nccl-1  | \x1b[2m{}\x1b[0m"],
)  # fmt: skip
def test_what_a_launcher_writes_before_lines_is_left_out(tmp_path: Path, line: str) -> None:
    text = output()
    wrapped = "\n".join(line.format(one) for one in text.splitlines())
    assert read(tmp_path, wrapped) == read(tmp_path, text)


@pytest.mark.parametrize("root", ["-1", None])
@pytest.mark.parametrize("name", ["all_reduce_perf", None])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_times_are_read_by_the_header(
    tmp_path: Path, root: str | None, name: str | None, ranks: int
) -> None:
    text = output(root=root, name=name, ranks=ranks)
    found = read(tmp_path, text)
    assert found == read(tmp_path, text.replace("\n", "\r\n"))
    assert found == pytest.approx({size: 1e-6 * time for size, time in SIZES.items()})


@pytest.mark.parametrize(
    "text",
    [
        output(name="all_gather_perf", redop="none", factor=7 / 8),
        output(name=None, redop="none", factor=7 / 8),
        output(name=None, factor=7 / 8),  # reduce-scatter
        output(name=None, ranks=2, root="0", factor=1.0),  # reduce
        output(redop="max"),
        output(hosts=2),
        output(ranks=1),
        output(ranks=0),
        output() + output(),
        output(device="NVIDIA H200"),
        output(scale=1e-3),  # ms
        output().replace("(us)", "(ms)"),
        output(factor=20.0),
        output(root=None).replace("time   algbw", "algbw   time"),
        output().replace("algbw", "bandwidth"),
        output().replace("N/A\n", "\n").replace(" 0 20.00", " 3 20.00"),  # wrong results
        output().replace("20.00", "nan"),
        output().replace("20.00", "-20.0"),
        output().replace(" 65536", " 1048576"),
        output().replace(" 65536", " 65,536"),
        output(name=None, factor=7 / 8, slow=10.0).partition(" 1048576")[0],  # below 1 GB/s
        "hello",
        "",
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecordError) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (output(name="all_gather_perf"), "all_gather_perf"),
        (output(redop="none"), "not an all-reduce"),
        (output().replace("Rank  1", "Rank  0"), "rank 0 more than once"),
    ],
)
def test_other_output_is_refused_with_the_reason(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecordError, match=says):
        read(tmp_path, text)


def test_aggregated_launches_are_refused(tmp_path: Path) -> None:
    text = output().replace("minBytes 65536", "minBytes 65536 iters: 20 agg iters: {}")
    assert read(tmp_path, text.format(1)) == read(tmp_path, output())
    with pytest.raises(RecordError, match=r"20 all-reduces launched together"):
        read(tmp_path, text.format(20))


@pytest.mark.parametrize(
    "failure",
    [
        "host0: Test NCCL failure common.cu:961 'unhandled cuda error (run with NCCL_DEBUG=INFO)'",
        " .. host0 pid 300: Test failure all_reduce.cu:54",
        "host0: Test CUDA failure common.cu:303 'an illegal memory access was encountered'",
        "# Out of bounds values : 3 FAILED",
    ],
)
def test_a_run_that_failed_after_good_rows_is_refused(tmp_path: Path, failure: str) -> None:
    text = output()
    with pytest.raises(RecordError, match=f"line {len(text.splitlines()) + 1}: the run failed"):
        read(tmp_path, text + failure + "\n")


# As cudaGetDeviceProperties names the GPUs of the catalog; H200 NVL and V100 are not in it.
DEVICES = {
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "H100 NVL": "h100-nvl",
    "NVIDIA A100-SXM4-40GB": "a100-sxm-40gb",
    "A100-PCIE-40GB": "a100-pcie-40gb",
    "AMD Instinct MI300X": "mi300x",
    "NVIDIA H200 NVL": "",
    "Tesla V100-SXM2-16GB": "",
    "": "",
}


@pytest.mark.parametrize("device", DEVICES)
def test_times_are_read_only_for_their_own_gpu(tmp_path: Path, device: str) -> None:
    text = output(device=device, slow=20.0)
    for gpu in ("h100-sxm", "h200", "a100-sxm-80gb", DEVICES[device]):
        if gpu and gpu == DEVICES[device]:
            assert len(read(tmp_path, text, gpu)) == len(SIZES)
        elif gpu:
            with pytest.raises(RecordError) as error:
                read(tmp_path, text, gpu)
            assert repr(device) in str(error.value) and gpu in str(error.value)


OF_H200 = output(ranks=2, device="NVIDIA H200")


def test_a_run_becomes_an_all_reduce_table(tmp_path: Path) -> None:
    path = tmp_path / "nccl.txt"
    path.write_text(OF_H200)
    report = fit_inputs([path], gpu="h200")
    table = tomllib.loads(report.files["efficiency/h200/collectives-specroof.toml"])
    pair = ("all_reduce", "nccl", 2)
    keys = ("operation", "algorithm", "ranks")
    own = next(e for e in table["measured"] if tuple(e[k] for k in keys) == pair)
    assert own["message_bytes"] == list(SIZES)
    assert own["time_us"] == pytest.approx(list(SIZES.values()), rel=1e-2)
    assert any(e["operation"] == "all_gather" for e in table["measured"])
    path.write_text(OF_H200.replace("#  Rank", "# none"))
    with pytest.raises(RecordError, match="lists 0 ranks"):
        fit_inputs([path], gpu="h200")
    with pytest.raises(RecordError, match="add --gpu"):
        fit_inputs([path])


def test_the_gpu_of_a_run_is_read(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text(OF_H200)
    assert fit_inputs([one]).files == fit_inputs([one], gpu="h200").files != {}
    other.write_text(OF_H200.replace("NVIDIA H200", "Tesla V100"))
    with pytest.raises(RecordError, match="add --gpu"):
        fit_inputs([other])


def test_a_file_is_not_fitted_twice(tmp_path: Path) -> None:
    one, copy = tmp_path / "one.txt", tmp_path / "copy.txt"
    for path in (one, copy):
        path.write_text(OF_H200)
    for pair in ([one, one], [one, copy]):
        with pytest.raises(RecordError, match="are the same; give a file once"):
            fit_inputs(pair, gpu="h200")


def test_three_message_sizes_are_too_few(tmp_path: Path) -> None:
    (tmp_path / "nccl.txt").write_text(OF_H200.partition(f" {max(SIZES)}")[0])
    report = fit_inputs([tmp_path / "nccl.txt"], gpu="h200")
    assert not report.files
    assert "all-reduce: 3 message sizes; 4 are needed" in report.missing

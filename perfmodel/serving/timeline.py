"""`Timeline`: averages over time in a fixed number of spans."""

from __future__ import annotations


class Timeline:
    """Time-weighted averages over equal spans, whose width doubles when time passes the last."""

    # Of each span in `sums`; batch, KV share and γ are multiplied by seconds.
    COLUMNS = ("busy_s", "batch", "kv_share", "gamma", "tokens")

    def __init__(self, spans: int = 512, span_s: float = 1.0 / 64) -> None:
        self.span_s, self._spans = span_s, spans
        self.sums = [[0.0] * len(self.COLUMNS) for _ in range(spans)]

    def add(
        self, start_s: float, seconds: float, batch: int, kv_share: float, gamma: int, tokens: float
    ) -> None:
        """Add rounds that began at `start_s`, divided among the spans in which they ran."""
        while start_s + seconds >= self._spans * self.span_s:
            self._coarsen()
        left, rate = seconds, tokens / seconds
        while left > 0.0:
            index = int(start_s / self.span_s)
            end = (index + 1) * self.span_s
            part = left if start_s + left <= end else min(left, max(end - start_s, 1e-12))
            row = self.sums[min(index, self._spans - 1)]
            row[0] += part
            row[1] += batch * part
            row[2] += kv_share * part
            row[3] += gamma * part
            row[4] += rate * part
            left -= part
            start_s = start_s + part if part < left + part else end

    def rows(self, until_s: float) -> list[dict[str, float]]:
        """One dict per span: start, busy share, tokens/s, and means of the rest while busy."""
        rows = []
        for index in range(min(int(until_s / self.span_s) + 1, self._spans)):
            busy, batch, kv, gamma, tokens = self.sums[index]
            on = busy or 1.0
            rows.append(
                {
                    "start_s": index * self.span_s,
                    "busy_share": busy / self.span_s,
                    "batch": batch / on,
                    "kv_share": kv / on,
                    "gamma": gamma / on,
                    "tokens_per_s": tokens / self.span_s,
                }
            )
        return rows

    def _coarsen(self) -> None:
        pairs = zip(self.sums[::2], self.sums[1::2], strict=True)
        merged = [[a + b for a, b in zip(left, right, strict=True)] for left, right in pairs]
        empty = [[0.0] * len(self.COLUMNS) for _ in range(self._spans - len(merged))]
        self.sums, self.span_s = merged + empty, 2.0 * self.span_s

"""Predict one plan, find its best γ, and search for the best plan on a machine."""

import specroof

plan = {"gpu": "h100-sxm", "tp": 8, "batch": 64, "prompt_tokens": 32_000}
point = specroof.predict("llama-3.1-8b", **plan, draft="self", kv_budget=512, gamma=3)
print(point)
print(f"T_T {point.target_step.total_s:.4f} s, T_V {point.verify.total_s:.4f} s")
(best,) = specroof.sweep(point, gamma=range(1, 9)).best()
print(f"best: gamma {best['gamma']}, {best['speedup']:.2f}x")
print(specroof.recommend("llama-3.1-8b", **plan).sentence)

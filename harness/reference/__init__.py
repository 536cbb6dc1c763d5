"""The embedded model: a small trained Qwen2-VL checkpoint, its question sets, and the recipe for both."""

"""Commands of `specroof calibrate`, by what they measure or fit."""

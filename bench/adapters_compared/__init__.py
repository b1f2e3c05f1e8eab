"""The comparison of adapter methods on pretrained models; `bench/compare_adapters.py` is its command."""

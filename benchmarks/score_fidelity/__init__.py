"""Parts of `bench_score_fidelity.py`: two models on real images, and what is estimated on them."""

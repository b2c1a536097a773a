"""The tables and figures of the EfficientNetV2 paper (arXiv:2104.00298), each with our results next to the paper's.

Run: python -m benchmarks.paper TABLE ... [--scale tiny|small|paper] [--data DATA] [--weights WEIGHTS] [--record]
"""

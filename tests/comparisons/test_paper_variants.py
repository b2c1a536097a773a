"""Fused stages compared with the counts of Table 3 (arXiv:2104.00298; counted from the official code)."""

import pytest
from benchmarks.paper.throughput import with_fused

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.architectures.spec import fused_mbconv

B4 = get_architecture("efficientnet_b4")


@pytest.mark.parametrize(
    ("stages", "kernel", "millions", "paper"),
    [
        (3, None, 20.95, None),  # the paper prints 20.0
        (5, None, 43.5, 43.4),
        (7, None, 132.1, 132.0),
        (3, 3, 19.94, None),
        (5, 3, 29.0, None),
        (7, 3, 65.5, None),
    ],
)
def test_fused_b4_has_the_parameters_of_table_3(stages, kernel, millions, paper):
    counted = count_flops(with_fused(B4, stages=stages, kernel=kernel), image_size=380).total.parameters / 1e6
    assert counted == pytest.approx(millions, rel=2e-3)
    if paper:
        assert counted == pytest.approx(paper, rel=5e-3)


def test_only_the_first_stages_change_and_lose_squeeze_excite():
    fused = with_fused(B4, stages=2)
    assert [stage.operator for stage in fused.stages[:2]] == [
        fused_mbconv(expand=1, kernel=3),
        fused_mbconv(expand=6, kernel=3),
    ]
    assert fused.stages[2:] == B4.stages[2:]
    assert with_fused(B4, stages=0) == B4

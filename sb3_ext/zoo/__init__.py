from sb3_ext.zoo.registration import ALGORITHMS, register

__all__ = ["ALGORITHMS", "register"]

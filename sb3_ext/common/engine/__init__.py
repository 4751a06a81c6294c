from sb3_ext.common.engine.engine import UpdateEngine

__all__ = ["UpdateEngine"]

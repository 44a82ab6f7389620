"""A calculator to be hosted with ``wcfrelay host calculator:application``; the contract is that of the SOAP peers."""

from __future__ import annotations

from typing import Any

from spyne import Application, Array, Double, Fault, Integer32, Service, Unicode, rpc
from spyne.protocol.soap import Soap11

NAMESPACE = "http://example.org/calc"


class Calculator(Service):  # type: ignore[misc] # spyne has no annotations
    @rpc(Double, Double, _returns=Double)  # type: ignore[untyped-decorator]
    def Add(ctx: Any, a: float, b: float) -> float:
        return a + b

    @rpc(Double, Double, _returns=Double)  # type: ignore[untyped-decorator]
    def Divide(ctx: Any, a: float, b: float) -> float:
        if b == 0:
            raise Fault("Client.DivZero", "division by zero", detail={"CalcFault": {"Reason": "zero"}})
        return a / b

    @rpc(Unicode, _returns=Unicode)  # type: ignore[untyped-decorator]
    def Echo(ctx: Any, s: str) -> str:
        return s

    @rpc(Integer32, _returns=Array(Integer32, member_name="int"))  # type: ignore[untyped-decorator]
    def Squares(ctx: Any, n: int) -> list[int]:
        return [i * i for i in range(n)]


application = Application(
    [Calculator], NAMESPACE, name="Calculator", in_protocol=Soap11(validator="lxml"), out_protocol=Soap11()
)

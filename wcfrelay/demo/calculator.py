"""A calculator, for ``wcfrelay host wcfrelay.demo.calculator:application --relay calculator``."""

from spyne import Application, Double, Fault, Integer32, ServiceBase, Unicode, rpc
from spyne.protocol.soap import Soap11


class Calculator(ServiceBase):
    @rpc(Double, Double, _returns=Double)
    def Add(ctx, a, b):
        return a + b

    @rpc(Double, Double, _returns=Double)
    def Divide(ctx, a, b):
        if b == 0:
            raise Fault("Client.DivideByZero", "The divisor is zero.", detail={"Dividend": f"{a:g}"})
        return a / b

    @rpc(Integer32, _returns=Unicode)
    async def Digits(ctx, count):
        """The first digits of 1/7, as many as wanted: an answer of any size."""
        return ("142857" * (count // 6 + 1))[:count]


application = Application(
    [Calculator], "urn:wcfrelay:demo:calculator", in_protocol=Soap11(validator="lxml"), out_protocol=Soap11()
)

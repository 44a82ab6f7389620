"""A spyne service, hosted behind a relay by the listener itself: no HTTP server, no port.

PYTHONPATH=samples/host_spyne wcfrelay host calculator:application --relay calculator
"""

import time

from spyne import Application, Double, Fault, Integer32, ServiceBase, rpc
from spyne.protocol.soap import Soap11
from twisted.internet import reactor
from twisted.internet.task import deferLater

from wcfrelay.listener.spyne import in_thread


class Calculator(ServiceBase):
    @rpc(Double, Double, _returns=Double)
    def Add(ctx, a, b):
        return a + b

    @rpc(Double, Double, _returns=Double)
    def Divide(ctx, a, b):
        if b == 0:
            raise Fault("Client.DivideByZero", "The divisor is zero.")
        return a / b

    @rpc(Double, Double, _returns=Double)
    async def AddLater(ctx, a, b):
        """A method may wait for anything of Twisted; other calls go on meanwhile."""
        await deferLater(reactor, 0.2, lambda: None)
        return a + b

    @rpc(Integer32, _returns=Integer32)
    @in_thread
    def SlowSquare(ctx, n):
        """A method that blocks belongs into a thread."""
        time.sleep(0.2)
        return n * n


application = Application(
    [Calculator], "urn:example:calculator", in_protocol=Soap11(validator="lxml"), out_protocol=Soap11()
)

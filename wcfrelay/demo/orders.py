"""An order book over plain HTTP, as it could have been running for years: it knows of no relay.

``python -m wcfrelay.demo.orders [PORT]`` serves it on 127.0.0.1 and prints its address.
"""

import contextlib
import sys
from datetime import UTC, datetime
from decimal import Decimal as Number
from wsgiref.simple_server import WSGIRequestHandler, make_server

import wcfrelay.listener.spyne  # noqa: F401  (spyne can be imported behind it only, on Python 3.12 and later)

# isort: split
from spyne import Application, ComplexModel, DateTime, Decimal, Fault, Integer32, ServiceBase, Unicode, rpc
from spyne.protocol.soap import Soap11
from spyne.server.wsgi import WsgiApplication

NAMESPACE = "urn:wcfrelay:demo:orders"
PRICES = {"bolt": Number("0.35"), "nut": Number("0.12"), "washer": Number("0.05")}


class Order(ComplexModel):
    __namespace__ = NAMESPACE
    Item = Unicode
    Count = Integer32


class Receipt(ComplexModel):
    __namespace__ = NAMESPACE
    Number = Integer32
    Order = Order
    Total = Decimal
    Placed = DateTime


RECEIPTS: list[Receipt] = []


class Orders(ServiceBase):
    @rpc(Order, _returns=Receipt)
    def Place(ctx, order):
        if order.Item not in PRICES:
            raise Fault("Client.NoSuchItem", f"There is no {order.Item} here, only {', '.join(PRICES)}.")
        receipt = Receipt(
            Number=1001 + len(RECEIPTS),
            Order=order,
            Total=PRICES[order.Item] * order.Count,
            Placed=datetime.now(UTC).replace(microsecond=0),
        )
        RECEIPTS.append(receipt)
        return receipt

    @rpc(_returns=Integer32)
    def HowMany(ctx):
        return len(RECEIPTS)


application = Application([Orders], NAMESPACE, in_protocol=Soap11(validator="lxml"), out_protocol=Soap11())


class Quiet(WSGIRequestHandler):
    def log_message(self, format, *args):
        pass


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with make_server("127.0.0.1", port, WsgiApplication(application), handler_class=Quiet) as server:
        print(f"http://127.0.0.1:{server.server_port}/Orders.svc", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()

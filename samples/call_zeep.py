"""Calls the service of samples/host_spyne through the relay, with zeep.

    python samples/call_zeep.py

The connection string and the CA file come from WCFRELAY_CONNECTION_STRING and WCFRELAY_CA_FILE (see README.md).
"""

from zeep.exceptions import Fault

from wcfrelay.errors import RelayError
from wcfrelay.sender import relay_client

client = relay_client("calculator")
print("1.5 + 2.25 =", client.service.Add(a=1.5, b=2.25))

try:
    client.service.Divide(a=1, b=0)
except Fault as fault:  # the service said no
    print("1 / 0:", fault.message)

try:
    relay_client("nobody-is-here")
except RelayError as error:  # the relay said no; error.transient tells whether to try again
    print("nobody-is-here:", error.message)

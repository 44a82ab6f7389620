"""HTTP/1.1 over llhttp, both roles, bodies streamed both ways."""

// Servers outside the mesh, in plaintext: each answers one line, and ends the connection first, or resets it when asked.
// argv: [2] ports, comma-separated. Says "ready" once all listen.
import {createServer} from 'node:net';

const ports = process.argv[2]!.split(',').map(Number);
let open = ports.length;
for (const port of ports)
	createServer(socket => {
		socket.on('error', () => {});
		socket.once('data', chunk => {
			if (chunk.toString('latin1').startsWith('reset')) socket.resetAndDestroy();
			else socket.end('{}\n');
		});
	}).listen(port, '::', 4096, () => {
		if (--open === 0) console.log('ready');
	});
process.stdin.resume().on('end', () => process.exit(0));

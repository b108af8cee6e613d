// Stands for the DNS server of the network: answers every question with one address. node scripts/bench/dns-upstream.ts ADDRESS
import {createSocket} from 'node:dgram';
import {parseQuery} from '../../src/dns/message.ts';
import {encodeAddresses, replyRecords} from '../../src/dns/replies.ts';

const address = process.argv[2]!;
const records = encodeAddresses([Uint8Array.of(192, 0, 2, 1)], 60);
const socket = createSocket({type: 'udp4', lookup: (host, _options, callback) => callback(null, host, 4)});
socket.on('message', (message, from) => {
	const query = parseQuery(message);
	if (typeof query !== 'object') return;
	const reply = replyRecords(query, records, query.udpSize, 0);
	socket.send(reply, 0, reply.length, from.port, from.address);
});
socket.bind(53, address, () => console.log('listening'));
process.stdin.on('end', () => process.exit(0)).resume();

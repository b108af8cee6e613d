// The least a relay of gRPC in Node can do: one part of it, floor-relay.ts up|relay|down UP-SOCKET DOWN-SOCKET COUNT BYTES.
// Says a line when it is there; `down`, when it has all answers.
import {Client, credentials, Server, ServerCredentials, type ServerDuplexStream} from '@grpc/grpc-js';

const [role, upSocket, downSocket, count, bytes] = process.argv.slice(2) as [string, string, string, string, string];
const asIs = (value: Buffer): Buffer => value;
const path = '/floor.Relay/Stream';
const unlimited = {'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1};

function serve(socket: string, onStream: (call: ServerDuplexStream<Buffer, Buffer>) => void): void {
	const server = new Server(unlimited);
	const method = {path, requestStream: true, responseStream: true} as const;
	const serialization = {
		requestSerialize: asIs,
		requestDeserialize: asIs,
		responseSerialize: asIs,
		responseDeserialize: asIs,
	};
	server.addService({stream: {...method, ...serialization}}, {stream: onStream});
	server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), error => {
		if (error) throw error;
		console.log('listens');
	});
}

const open = (socket: string) =>
	new Client(`unix:${socket}`, credentials.createInsecure(), unlimited).makeBidiStreamRequest(path, asIs, asIs);

if (role === 'up') {
	serve(upSocket, call => {
		call.once('data', () => {
			for (let n = 0; n < Number(count); n++) call.write(Buffer.alloc(Number(bytes), n));
		});
	});
} else if (role === 'relay') {
	serve(downSocket, call => {
		const upstream = open(upSocket);
		call.on('data', (message: Buffer) => upstream.write(message));
		upstream.on('data', (message: Buffer) => call.write(message));
	});
} else {
	const stream = open(downSocket);
	let received = 0;
	stream.on('data', () => {
		stream.write(Buffer.alloc(1));
		if (++received === Number(count)) console.log('has all');
	});
	stream.write(Buffer.alloc(1));
}

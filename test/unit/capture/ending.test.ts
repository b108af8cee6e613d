import {once} from 'node:events';
import {type AddressInfo, connect, createServer, type Socket} from 'node:net';
import test, {type ExecutionContext} from 'ava';
import {endingConnections} from '../../../src/capture/ending.ts';
import type {Run} from '../../../src/capture/programs.ts';
import {findProgram} from '../../../src/lifecycle/find-program.ts';

/** What would have been done, in order, with a connection through where Envoy would be. */
async function endWith(t: ExecutionContext, isConnected: boolean, onTakeAway: (client: Socket) => void) {
	const server = createServer(socket => socket.on('error', () => {}).on('end', () => socket.end()));
	server.listen(0, '127.0.0.1');
	await once(server, 'listening');
	const {port} = server.address() as AddressInfo;
	const client = connect(port, '127.0.0.1');
	await once(client, 'connect');
	t.teardown(() => {
		client.destroy();
		server.close();
	});
	const done: string[] = [];
	const run: Run = async (program, args, input = '') => {
		done.push(/^add table/.test(input) ? 'release' : program === 'nft' ? 'hold' : [program, args[0]].join(' '));
		return {code: 0, stdout: '', stderr: ''};
	};
	const ended = await endingConnections(run, [{family: 'ip', port: isConnected ? port : 1}], async () => {
		done.push('take away');
		onTakeAway(client);
	});
	return {...ended, done};
}

const isHere = (t: ExecutionContext): boolean => {
	const missing = ['nft', 'ss'].filter(name => findProgram(name) === undefined);
	if (missing.length === 0) return true;
	t.log(`skipped: needs ${missing.join(', ')}`);
	t.pass();
	return false;
};

const whole = ['hold', 'take away', 'ss -K', 'release'];

test('ending › connections that come while the rules go are thought of, also where there was none', async t => {
	if (!isHere(t)) return;
	t.deepEqual(await endWith(t, false, () => {}), {ended: 0, orphaned: 0, done: whole});
});

test('ending › what is nearly done ends by itself, what is not is ended, or counted where that fails', async t => {
	if (!isHere(t)) return;
	const nearlyDone = await endWith(t, true, client => {
		setTimeout(() => client.end(), 100);
	});
	t.deepEqual(nearlyDone, {ended: 0, orphaned: 0, done: whole});
	t.deepEqual(await endWith(t, true, () => {}), {ended: 0, orphaned: 1, done: whole});
});

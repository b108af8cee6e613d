import test from 'ava';
import {silentLogger} from '../../../src/log.ts';
import {typeUrl} from '../../../src/proto/types.ts';
import {FieldWriter} from '../../../src/proto/wire.ts';
import {startOwnInbound} from '../../../src/registration/index.ts';
import {FakeClock} from '../../support/fake-clock.ts';

const {cluster: cds, endpoint: eds} = typeUrl;
const eightyEighty = 'outbound|80||vm.ns.svc.cluster.local';

/** A ClusterLoadAssignment with these `address:port`. */
function endpoints(name: string, ...at: readonly (readonly [string, number])[]) {
	const body = new FieldWriter().string(1, name).message(2, locality => {
		for (const [address, port] of at)
			locality.message(2, lb =>
				lb.message(1, endpoint =>
					endpoint.message(1, outer => outer.message(1, socket => socket.string(2, address).uint(3, port))),
				),
			);
		return locality;
	});
	return {name, any: new FieldWriter().string(1, eds).bytes(2, body.finish()).finish()};
}

const cluster = (name: string) => ({name, any: Buffer.alloc(0)});

function setUp(address = '10.0.0.5') {
	const clock = new FakeClock();
	let reconnects = 0;
	const own = startOwnInbound({
		address: () => address,
		clock,
		reconnect: () => reconnects++,
		random: () => 0,
		log: silentLogger,
	});
	return {
		clock,
		own,
		reconnects: () => reconnects,
		see: (url: string, resources: readonly {name: string; any: Buffer}[], removed: readonly string[] = []) =>
			own.see(
				{
					typeUrl: url,
					resources: {
						names: resources.map(({name}) => name),
						any: i => resources[i]!.any,
						holding: needle => resources.flatMap(({any}, i) => (any.includes(needle) ? [i] : [])),
					},
					removed,
				},
				false,
			),
	};
}

test('own inbound › asks anew for ports that others are sent to and that nothing serves', async t => {
	const {clock, own, see, reconnects} = setUp();
	see(cds, [cluster(eightyEighty), cluster('InboundPassthroughCluster')]);
	see(eds, [endpoints(eightyEighty, ['10.0.0.6', 8080], ['10.0.0.5', 8080])]);
	t.deepEqual(own.status(), {ports: [8080], missing: [8080], attempts: 0});
	await clock.advance(999);
	t.is(reconnects(), 0);
	await clock.advance(1);
	t.is(reconnects(), 1);
	see(cds, [cluster(eightyEighty), cluster('inbound|8080||')]);
	t.deepEqual(own.status(), {ports: [8080], missing: [], attempts: 0});
	await clock.advance(3_600_000);
	t.is(reconnects(), 1);
	await own.stop();
});

test('own inbound › waits for the push that follows a registration', async t => {
	const {clock, own, see, reconnects} = setUp();
	see(eds, [endpoints(eightyEighty, ['10.0.0.5', 8080])]);
	await clock.advance(200);
	see(cds, [cluster('inbound|8080||')]);
	await clock.advance(60_000);
	t.is(reconnects(), 0);
	await own.stop();
});

test('own inbound › gives up after three streams, and begins again when something changes', async t => {
	const {clock, own, see, reconnects} = setUp();
	see(eds, [endpoints(eightyEighty, ['10.0.0.5', 8080])]);
	await clock.advance(3_600_000);
	t.is(reconnects(), 3);
	t.is(own.status().attempts, 3);
	see(eds, [endpoints('outbound|90||vm.ns.svc.cluster.local', ['10.0.0.5', 9090])]);
	await clock.advance(1000);
	t.is(reconnects(), 4);
	await own.stop();
});

test('own inbound › is not concerned with other addresses, nor with services it has left', async t => {
	const {clock, own, see, reconnects} = setUp('10.0.0.5');
	see(eds, [endpoints(eightyEighty, ['10.0.0.55', 8080])]);
	t.deepEqual(own.status().ports, []);
	see(eds, [endpoints(eightyEighty, ['10.0.0.5', 8080])]);
	see(eds, [endpoints(eightyEighty)]);
	see(eds, [endpoints(eightyEighty, ['10.0.0.5', 8080])]);
	see(eds, [], [eightyEighty]);
	see(eds, [{name: eightyEighty, any: Buffer.from('10.0.0.5 is no protobuf')}]);
	t.deepEqual(own.status().ports, []);
	await clock.advance(60_000);
	t.is(reconnects(), 0);
	await own.stop();
});

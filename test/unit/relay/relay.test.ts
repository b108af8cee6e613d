import {rootCertificates} from 'node:tls';
import test from 'ava';
import {AgentError} from '../../../src/errors.ts';
import {typeUrl} from '../../../src/proto/types.ts';
import {FieldWriter} from '../../../src/proto/wire.ts';
import {versionOf} from '../../../src/relay/cache.ts';
import {anyOf, contentOf, settle, until} from '../../support/fake-ads.ts';
import {edsCluster, relayConfig, resource, setUpRelay} from '../../support/relay.ts';

const {cluster: cds, endpoint: eds, listener: lds, nameTable: nds, proxyConfig: pcds, route: rds} = typeUrl;
const root = rootCertificates[0]!;
const broken = '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n';

test('relay › asks for clusters and listeners before any Envoy is there, naming the node once', async t => {
	const {relay, upstream} = setUpRelay();
	relay.begin();
	const stream = await upstream.stream(1);
	await until('both requests', () => stream.requests.length === 2);
	t.deepEqual(
		stream.requests.map(({typeUrl: url, node}) => [url, node !== undefined]),
		[
			[cds, true],
			[lds, false],
		],
	);
	await relay.stop();
});

test('relay › passes resources on byte for byte and acknowledges only what Envoy has taken', async t => {
	const {upstream, connect, relay, readiness} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	const stream = await upstream.stream(1);
	const sent = resource(cds, 'a', 'payload');
	const nonce = stream.send(cds, [sent]);
	const response = await envoy.response(cds, 1);
	t.deepEqual(response.resources[0]?.any, sent[1]);
	await settle();
	t.is(
		stream.requests.find(request => request.nonce === nonce),
		undefined,
	);
	envoy.answer(response);
	const ack = await stream.answerTo(nonce);
	t.is(ack.error, undefined);
	t.deepEqual(ack.subscribe, [], 'an acknowledgement that changes the subscription confuses istiod');
	t.false(readiness.isReady);
	stream.send(lds, []);
	await until('the gate', () => readiness.isReady);
	await relay.stop();
});

test('relay › carries Envoy’s refusal to the control plane, with its words, and shows it in status', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(lds);
	const stream = await upstream.stream(1);
	const nonce = stream.send(lds, [resource(lds, 'bad')]);
	envoy.answer(await envoy.response(lds, 1), {code: 13, message: 'no such filter'});
	t.deepEqual((await stream.answerTo(nonce)).error, {code: 13, message: 'no such filter'});
	t.is(relay.status().rejections[0]?.message, 'no such filter');
	stream.send(lds, [resource(lds, 'bad', 'mended')]);
	envoy.answer(await envoy.response(lds, 2));
	await until('the rejection to go', () => relay.status().rejections.length === 0);
	await relay.stop();
});

test('relay › says again what Envoy has refused when the control plane sends it again, without asking Envoy again', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	const stream = await upstream.stream(1);
	const refusal = {code: 13, message: 'Error adding/updating cluster(s) bad: no'};
	stream.send(cds, [resource(cds, 'bad'), resource(cds, 'good')]);
	envoy.answer(await envoy.response(cds, 1), refusal);
	const same = stream.send(cds, [resource(cds, 'bad'), resource(cds, 'good')]);
	t.deepEqual((await stream.answerTo(same)).error, refusal, 'the control plane must not hear that all is well');
	t.is(envoy.of(cds).length, 1, 'Envoy would refuse it again, for ever');
	// Envoy takes what is new, and is still without the rest.
	const more = stream.send(cds, [resource(cds, 'bad'), resource(cds, 'good', 'better')]);
	const second = await envoy.response(cds, 2);
	t.deepEqual(
		second.resources.map(({name}) => name),
		['good'],
	);
	envoy.answer(second);
	t.deepEqual((await stream.answerTo(more)).error, refusal);
	t.is(relay.status().rejections.length, 1);
	// An answer that has nothing to do with it is taken.
	const other = stream.send(cds, [resource(cds, 'other')]);
	envoy.answer(await envoy.response(cds, 3));
	t.is((await stream.answerTo(other)).error, undefined);
	t.is(relay.status().rejections.length, 1, 'Envoy still runs without it');
	await relay.stop();
});

const mended: Record<string, [resources: (readonly [string, Buffer])[], removed: string[]]> = {
	'it is mended': [[resource(cds, 'bad', 'mended')], []],
	'it is removed': [[], ['bad']],
};
for (const [how, mend] of Object.entries(mended)) {
	test(`relay › forgets a refusal when ${how}`, async t => {
		const {upstream, connect, relay} = setUpRelay();
		const envoy = connect();
		envoy.ask(cds);
		const stream = await upstream.stream(1);
		stream.send(cds, [resource(cds, 'bad'), resource(cds, 'good')]);
		envoy.answer(await envoy.response(cds, 1), {code: 13, message: 'cluster bad: no'});
		await until('the refusal', () => relay.status().rejections.length === 1);
		const nonce = stream.send(cds, ...mend);
		envoy.answer(await envoy.response(cds, 2));
		t.is((await stream.answerTo(nonce)).error, undefined);
		t.deepEqual(relay.status().rejections, []);
		const again = stream.send(cds, [resource(cds, 'good')]);
		t.is((await stream.answerTo(again)).error, undefined);
		await relay.stop();
	});
}

test('relay › forgets the refusals of an Envoy that is gone', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	const stream = await upstream.stream(1);
	stream.send(cds, [resource(cds, 'bad')]);
	envoy.answer(await envoy.response(cds, 1), {code: 13, message: 'no'});
	await until('the refusal', () => relay.status().rejections.length === 1);
	envoy.leave();
	await until('the end', () => relay.status().sessions === 0);
	t.deepEqual(relay.status().rejections, []);
	const again = stream.send(cds, [resource(cds, 'bad')]);
	t.is((await stream.answerTo(again)).error, undefined);
	await relay.stop();
});

test('relay › names Wasm filters whose code is not here', async t => {
	const wasm = 'type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm';
	/** TypedExtensionConfig: typed_config 2 = Any of Wasm: config 1: vm_config 3: code 3 = AsyncDataSource. */
	const extension = (name: string, write: (source: FieldWriter) => void, type = wasm): readonly [string, Buffer] => {
		const filter = new FieldWriter().message(1, plugin =>
			plugin.string(1, name).message(3, vm => vm.string(2, 'envoy.wasm.runtime.v8').message(3, write)),
		);
		const config = new FieldWriter().string(1, name).message(2, held => held.string(1, type).append(2, filter));
		return [name, new FieldWriter().string(1, typeUrl.extensionConfig).append(2, config).finish()];
	};
	const remote = (uri: string) => (source: FieldWriter) =>
		void source.message(2, data => data.message(1, http => http.string(1, uri).string(2, '_')));
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(typeUrl.extensionConfig, ['registry', 'web', 'file', 'other', 'broken']);
	const stream = await upstream.stream(1);
	stream.send(typeUrl.extensionConfig, [
		extension('registry', remote('oci://registry.example/filter:1')),
		extension('web', remote('https://user:secret@example.org/filter.wasm')),
		extension('file', source => source.message(1, local => local.string(1, '/filter.wasm'))),
		extension('other', remote('https://example.org/x'), 'type.googleapis.com/example.Other'),
		['broken', Buffer.from([0x12, 0xff])],
	]);
	envoy.answer(await envoy.response(typeUrl.extensionConfig, 1));
	const seen = relay.status().remoteCode;
	t.deepEqual(
		seen.map(({resource: name, uri}) => [name, uri]),
		[
			['registry', 'oci://registry.example/filter:1'],
			['web', 'https://example.org/filter.wasm'],
		],
	);
	t.regex(seen[0]!.problem, /cannot fetch/);
	await relay.stop();
});

test('relay › takes a large push in many turns, so that all else goes on meanwhile', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	const stream = await upstream.stream(1);
	await settle();
	let turns = 0;
	const count = () => {
		turns++;
		ticking = setImmediate(count);
	};
	let ticking = setImmediate(count);
	const names = Array.from({length: 5000}, (_, i) => `outbound|80||svc-${i}.mesh`);
	stream.send(
		cds,
		names.map(name => edsCluster(name, '1')),
	);
	const clusters = await envoy.response(cds, 1);
	t.true(turns >= 30, `${turns} turns for 5,000 clusters`);
	t.is(clusters.resources.length, 5000);
	envoy.answer(clusters);
	envoy.ask(eds, names);
	turns = 0;
	stream.send(
		eds,
		names.map(name => resource(eds, name)),
	);
	const taken = new Set<string>();
	for (let number = 1; taken.size < 5000; number++) {
		// Envoy asks while they come in, so they may come in parts.
		const part = await envoy.response(eds, number);
		for (const {name} of part.resources) taken.add(name);
		envoy.answer(part);
	}
	t.true(turns >= 30, `${turns} turns for 5,000 assignments`);
	clearImmediate(ticking);
	await relay.stop();
});

test('relay › answers for Envoy when nothing has changed for it', async t => {
	const {upstream, connect, relay, clock} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	const first = await upstream.stream(1);
	first.send(cds, [resource(cds, 'a'), resource(cds, 'b')]);
	envoy.answer(await envoy.response(cds, 1));
	first.fail(new AgentError('control_plane.unreachable', 'gone'));
	await until('the wait', () => relay.status().upstream.state === 'waiting');
	await clock.advance(1000);
	const second = await upstream.stream(2);
	const nonce = second.send(cds, [resource(cds, 'a'), resource(cds, 'b')]);
	await second.answerTo(nonce);
	t.is(envoy.of(cds).length, 1);
	await relay.stop();
});

test('relay › removes what the control plane no longer has after a reconnect', async t => {
	const {upstream, connect, relay, clock} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	const first = await upstream.stream(1);
	first.send(cds, [resource(cds, 'a'), resource(cds, 'b')]);
	envoy.answer(await envoy.response(cds, 1));
	first.fail(new AgentError('control_plane.unreachable', 'gone'));
	await until('the wait', () => relay.status().upstream.state === 'waiting');
	await clock.advance(1000);
	(await upstream.stream(2)).send(cds, [resource(cds, 'b')]);
	const response = await envoy.response(cds, 2);
	t.deepEqual(response.removed, ['a']);
	t.deepEqual(response.resources, []);
	await relay.stop();
});

test('relay › says nothing to an Envoy that outlived the agent until it knows everything, and then only the difference', async t => {
	const before = setUpRelay();
	const old = before.connect();
	old.ask(cds);
	(await before.upstream.stream(1)).send(cds, [
		resource(cds, 'kept'),
		resource(cds, 'changed'),
		resource(cds, 'dropped'),
	]);
	await old.response(cds, 1);
	await before.relay.stop();
	// The versions an Envoy would come back with; read from the wire, since they are not shown elsewhere.
	const versions = versionsSent(['kept', 'changed', 'dropped']);

	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds, [], versions);
	await settle();
	t.is(envoy.responses.length, 0, 'an empty agent must not tell Envoy to remove anything');
	(await upstream.stream(1)).send(cds, [
		resource(cds, 'kept'),
		resource(cds, 'changed', 'new content'),
		resource(cds, 'new'),
	]);
	const response = await envoy.response(cds, 1);
	t.deepEqual(response.resources.map(({name}) => name).sort(), ['changed', 'new']);
	t.deepEqual(response.removed, ['dropped']);
	await relay.stop();
});

/** What a fresh relay calls these resources. */
const versionsSent = (names: readonly string[]): Record<string, string> =>
	Object.fromEntries(names.map(name => [name, versionOf(anyOf(cds, name, name), '')]));

test('relay › does not take endpoints from a returning Envoy that it has not fetched yet', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds, [], {c: 'v'});
	envoy.ask(eds, ['c'], {c: 'old'});
	const stream = await upstream.stream(1);
	await settle();
	t.is(envoy.responses.length, 0);
	stream.send(cds, [edsCluster('c', '1')]);
	stream.send(eds, [resource(eds, 'c', 'addresses')]);
	const response = await envoy.response(eds, 1);
	t.deepEqual(response.removed, []);
	t.is(response.resources[0]?.name, 'c');
	await relay.stop();
});

test('relay › asks for endpoints as soon as their cluster is known, and drops them with it', async t => {
	const {upstream, relay} = setUpRelay();
	relay.begin();
	const stream = await upstream.stream(1);
	stream.send(cds, [edsCluster('a', '1'), edsCluster('b', '1'), resource(cds, 'static')]);
	const request = await until('the EDS request', () => stream.of(eds)[0]);
	t.deepEqual([...request.subscribe].sort(), ['a', 'b']);
	stream.send(cds, [], ['b']);
	const dropped = await until('the unsubscription', () =>
		stream.of(eds).find(({unsubscribe}) => unsubscribe.length > 0),
	);
	t.deepEqual(dropped.unsubscribe, ['b']);
	await relay.stop();
});

test('relay › resends the endpoints of a changed cluster, so that it does not warm for 15 seconds', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	const stream = await upstream.stream(1);
	stream.send(cds, [edsCluster('c', '1')]);
	envoy.answer(await envoy.response(cds, 1));
	envoy.ask(eds, ['c']);
	stream.send(eds, [resource(eds, 'c', 'addresses')]);
	envoy.answer(await envoy.response(eds, 1));
	stream.send(cds, [edsCluster('c', '2')]);
	await envoy.response(cds, 2);
	const again = await envoy.response(eds, 2);
	t.is(again.resources[0]?.name, 'c');
	await relay.stop();
});

test('relay › resends the endpoints after the changed cluster, also when it changed before Envoy took the first', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	const stream = await upstream.stream(1);
	stream.send(cds, [edsCluster('c', '1')]);
	const first = await envoy.response(cds, 1);
	// As istiod does right after a registration: Envoy has the first cluster, and has asked for nothing yet.
	stream.send(cds, [edsCluster('c', '2')]);
	stream.send(eds, [resource(eds, 'c', 'addresses')]);
	await settle();
	envoy.ask(eds, ['c']);
	envoy.answer(await envoy.response(eds, 1));
	envoy.answer(first);
	await envoy.response(cds, 2);
	const again = await envoy.response(eds, 2);
	t.is(again.resources[0]?.name, 'c');
	await relay.stop();
});

test('relay › resends the endpoints of a cluster that changed while its Envoy was away', async t => {
	const {upstream, connect, relay} = setUpRelay();
	relay.begin();
	const stream = await upstream.stream(1);
	stream.send(cds, [edsCluster('c', '1')]);
	const [name, addresses] = resource(eds, 'c', 'addresses');
	stream.send(eds, [[name, addresses]]);
	await settle();
	const returning = connect();
	returning.ask(cds, [], {c: 'older'});
	await returning.response(cds, 1);
	// It holds just these endpoints.
	returning.ask(eds, ['c'], {c: versionOf(addresses, '')});
	t.is((await returning.response(eds, 1)).resources[0]?.name, 'c');
	await relay.stop();
});

test('relay › has one answer of a type under way at a time and sends later changes together', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	const stream = await upstream.stream(1);
	stream.send(cds, [resource(cds, 'a', '1')]);
	const first = await envoy.response(cds, 1);
	for (let i = 2; i <= 50; i++) stream.send(cds, [resource(cds, 'a', String(i))]);
	const last = stream.send(cds, [resource(cds, 'b')]);
	await settle();
	t.is(envoy.of(cds).length, 1);
	envoy.answer(first);
	const second = await envoy.response(cds, 2);
	t.deepEqual(second.resources.map(({name}) => name).sort(), ['a', 'b']);
	t.true(second.resources.some(({any}) => contentOf(any).includes('50')));
	envoy.answer(second);
	await stream.answerTo(last);
	await relay.stop();
});

test('relay › sends listeners after the clusters they may name', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	envoy.ask(lds);
	const stream = await upstream.stream(1);
	stream.send(cds, [resource(cds, 'a')]);
	stream.send(lds, []);
	const first = await envoy.response(cds, 1);
	envoy.answer(await envoy.response(lds, 1));
	// The first clusters are not acknowledged yet, so the second must wait, and with them the listener.
	stream.send(cds, [resource(cds, 'b')]);
	stream.send(lds, [resource(lds, 'l')]);
	await settle();
	t.is(envoy.of(lds).length, 1);
	envoy.answer(first);
	await envoy.response(lds, 2);
	t.is(envoy.of(cds).length, 2);
	await relay.stop();
});

test('relay › an Envoy that says nothing for long, as while a cluster of its warms, is given what is new all the same', async t => {
	const {upstream, clock, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	envoy.ask(lds);
	const stream = await upstream.stream(1);
	stream.send(cds, [resource(cds, 'a')]);
	stream.send(lds, []);
	const first = await envoy.response(cds, 1);
	envoy.answer(await envoy.response(lds, 1));
	const nonce = stream.send(cds, [resource(cds, 'b')]);
	stream.send(lds, [resource(lds, 'l')]);
	await settle();
	await clock.advance(900);
	await settle();
	t.is(envoy.of(cds).length, 1, 'an answer may still come');
	await clock.advance(200);
	const second = await envoy.response(cds, 2);
	t.deepEqual(
		second.resources.map(({name}) => name),
		['b'],
	);
	t.deepEqual(
		(await envoy.response(lds, 2)).resources.map(({name}) => name),
		['l'],
	);
	// In the end it takes both; the control plane hears of it only then.
	await settle();
	t.false(stream.requests.some(request => request.nonce === nonce));
	envoy.answer(first);
	envoy.answer(second);
	await stream.answerTo(nonce);
	await relay.stop();
});

test('relay › however often clusters change while one warms, listeners are not held back for long', async t => {
	const {upstream, clock, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	envoy.ask(lds);
	const stream = await upstream.stream(1);
	stream.send(cds, [resource(cds, 'a')]);
	stream.send(lds, []);
	envoy.answer(await envoy.response(lds, 1));
	await envoy.response(cds, 1);
	for (let n = 2; n <= 30; n++) {
		stream.send(cds, [resource(cds, 'a', `change ${n}`)]);
		await settle();
		await clock.advance(1100);
		await settle();
	}
	t.true(envoy.of(cds).length >= 16, 'more slowly from there on');
	t.true(envoy.of(cds).length < 25);
	stream.send(lds, [resource(lds, 'policy')]);
	await settle();
	await clock.advance(5000);
	t.deepEqual(
		(await envoy.response(lds, 2)).resources.map(({name}) => name),
		['policy'],
	);
	await relay.stop();
});

test('relay › ignores an acknowledgement of an older answer', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	const stream = await upstream.stream(1);
	const nonce = stream.send(cds, [resource(cds, 'a')]);
	const response = await envoy.response(cds, 1);
	envoy.answer({...response, nonce: 'from another time'});
	await settle();
	t.false(stream.requests.some(request => request.nonce === nonce));
	await relay.stop();
});

test('relay › answers an Envoy that has nothing to be told, since it waits for the first answer', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	envoy.ask(lds);
	const stream = await upstream.stream(1);
	stream.send(cds, []);
	stream.send(lds, []);
	t.deepEqual((await envoy.response(cds, 1)).resources, []);
	t.deepEqual((await envoy.response(lds, 1)).resources, []);
	await relay.stop();
});

test('relay › speaks state of the world to an Envoy that does, clusters always whole', async t => {
	const {upstream, connect, relay} = setUpRelay();
	const envoy = connect('sotw');
	envoy.ask(cds);
	const stream = await upstream.stream(1);
	stream.send(cds, [resource(cds, 'a'), resource(cds, 'b')]);
	const first = await envoy.response(cds, 1);
	t.deepEqual(first.resources.map(({name}) => name).sort(), ['a', 'b']);
	envoy.answer(first);
	const nonce = stream.send(cds, [resource(cds, 'c')], ['a']);
	const second = await envoy.response(cds, 2);
	t.deepEqual(second.resources.map(({name}) => name).sort(), ['b', 'c']);
	envoy.answer(second, {code: 13, message: 'no'});
	t.is((await stream.answerTo(nonce)).error?.message, 'no');
	await relay.stop();
});

test('relay › falls back to state of the world when the control plane has no delta', async t => {
	const {upstream, relay, clock} = setUpRelay();
	upstream.refuse = protocol =>
		protocol === 'delta' ? new AgentError('control_plane.unsupported', 'no delta here') : undefined;
	relay.begin();
	await until('the refusal', () => relay.status().upstream.state === 'waiting');
	await clock.advance(1000);
	const stream = await upstream.stream(1);
	t.is(stream.protocol, 'sotw');
	const nonce = stream.send(cds, [resource(cds, 'a')]);
	const ack = await stream.answerTo(nonce);
	t.is(ack.version, nonce);
	await relay.stop();
});

test('relay › keeps Envoy’s own subscriptions over a reconnect and never repeats one that is known', async t => {
	const {upstream, connect, relay, clock} = setUpRelay();
	const envoy = connect();
	envoy.ask(cds);
	envoy.ask(rds, ['80', '443']);
	const first = await upstream.stream(1);
	await until('the route request', () => first.of(rds).length === 1);
	envoy.forget(rds, ['443']);
	await until('the unsubscription', () => first.of(rds).some(({unsubscribe}) => unsubscribe.includes('443')));
	first.fail(new AgentError('control_plane.unreachable', 'gone'));
	await until('the wait', () => relay.status().upstream.state === 'waiting');
	await clock.advance(1000);
	const second = await upstream.stream(2);
	const request = await until('the route request', () => second.of(rds)[0]);
	t.deepEqual(request.subscribe, ['80']);
	await relay.stop();
});

test('relay › takes in the name table itself and refuses one it cannot read', async t => {
	const tables: Buffer[] = [];
	const config = {...relayConfig, isNameTableWanted: true};
	const {upstream, relay} = setUpRelay({
		config,
		onNameTable: table => {
			if (table.includes('bad')) throw new Error('not a table');
			tables.push(Buffer.from(table));
		},
	});
	relay.begin();
	const stream = await upstream.stream(1);
	const good = stream.send(nds, [['', anyOf(nds, 'x', 'good')]]);
	t.is((await stream.answerTo(good)).error, undefined);
	const bad = stream.send(nds, [['', anyOf(nds, 'x', 'bad')]]);
	t.regex((await stream.answerTo(bad)).error?.message ?? '', /not a table/);
	t.is(tables.length, 1);
	await relay.stop();
});

for (const [what, body] of [
	['an entry that is no certificate', new FieldWriter().strings(34, [root, 'not a certificate']).finish()],
	['an entry whose content is no certificate', new FieldWriter().strings(34, [broken]).finish()],
	['an entry that is cut short', new FieldWriter().strings(34, [root.slice(0, -100)]).finish()],
	['an entry with a broken one beside a good one', new FieldWriter().strings(34, [`${root}\n${broken}`]).finish()],
	['bytes that are no message', Buffer.from([0x92, 0x02, 0xff, 0x01])],
	['an entry longer than the message', Buffer.from([0x92, 0x02, 0x40, 0x2d])],
] as const)
	test(`relay › takes in the roots of the mesh itself, and refuses ${what}, after which the earlier ones count`, async t => {
		const seen: (readonly string[])[] = [];
		const config = {...relayConfig, isProxyConfigWanted: true};
		const {upstream, relay} = setUpRelay({config, onTrustBundle: roots => seen.push(roots)});
		relay.begin();
		const stream = await upstream.stream(1);
		const wrap = (bytes: Buffer) => new FieldWriter().string(1, pcds).bytes(2, bytes).finish();
		const good = stream.send(pcds, [['', wrap(new FieldWriter().strings(34, [root]).finish())]]);
		t.is((await stream.answerTo(good)).error, undefined);
		const bad = stream.send(pcds, [['', wrap(body)]]);
		const {error} = await stream.answerTo(bad);
		t.is(error?.code, 13);
		t.not(error?.message, '');
		t.deepEqual(seen, [[root]]);
		await relay.stop();
	});

test('relay › sends the health report after the listeners are asked for, and again on each new stream', async t => {
	const {upstream, relay, clock} = setUpRelay();
	relay.setHealth({isHealthy: false, message: 'port closed'});
	relay.begin();
	const first = await upstream.stream(1);
	const report = await until('the report', () => first.of(typeUrl.health)[0]);
	t.is(report.error?.message, 'port closed');
	const types = first.requests.map(({typeUrl: url}) => url);
	t.true(types.indexOf(typeUrl.health) > types.indexOf(lds));
	first.fail(new AgentError('control_plane.unreachable', 'gone'));
	await until('the wait', () => relay.status().upstream.state === 'waiting');
	await clock.advance(1000);
	const second = await upstream.stream(2);
	await until('the repeated report', () => second.of(typeUrl.health)[0]);
	await relay.stop();
});

test('relay › leaves the mesh when no Envoy is there for ten seconds and returns with one', async t => {
	const {upstream, connect, relay, clock} = setUpRelay();
	relay.begin();
	const first = await upstream.stream(1);
	await clock.advance(10_000);
	await until('the end of the stream', () => first.isEnded);
	await until('the idle state', () => relay.status().upstream.state === 'idle');
	const envoy = connect();
	envoy.ask(cds);
	await upstream.stream(2);
	t.is(relay.status().sessions, 1);
	await relay.stop();
});

test('relay › tries for ever with growing waits, and at once when told that something has changed', async t => {
	const {upstream, relay, clock} = setUpRelay();
	upstream.refuse = () => new AgentError('control_plane.unauthenticated', 'who are you', {hint: 'bring a token'});
	relay.begin();
	await until('the first refusal', () => relay.status().upstream.state === 'waiting');
	t.is(relay.status().upstream.lastError?.hint, 'bring a token');
	await clock.advance(400);
	t.is(relay.status().upstream.attempts, 1, 'half of the first second has not passed yet');
	await clock.advance(200);
	await until('the second refusal', () => relay.status().upstream.attempts === 2);
	upstream.refuse = undefined;
	relay.retryNow();
	await upstream.stream(1);
	await relay.stop();
	t.pass();
});

test('relay › gives up on a control plane that takes the stream and says nothing', async t => {
	const {upstream, relay, clock} = setUpRelay();
	relay.begin();
	await upstream.stream(1);
	await until('the request', () => upstream.streams[0]!.requests.length > 0);
	// The data plane's own patience is shorter, so an Envoy must be there for this one to count.
	relay.begin();
	await clock.advance(9_000);
	relay.begin();
	await clock.advance(9_000);
	relay.begin();
	await clock.advance(9_000);
	relay.begin();
	await clock.advance(4_000);
	await until('the failure', () => relay.status().upstream.lastError);
	t.regex(relay.status().upstream.lastError!.message, /no answer for 30 s/);
	await relay.stop();
});

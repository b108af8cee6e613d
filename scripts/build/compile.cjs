// Compiles all functions of the files FOLDER/*.js as the launcher wraps them, and writes FOLDER/NAME.js.cache. Called by
// scripts/build.ts with flags of V8 that make the same code the same bytes each time, on one machine and the next.
'use strict';
const {readdirSync, readFileSync, writeFileSync} = require('node:fs');
const {Script} = require('node:vm');
const [, , folder, before, after] = process.argv;
for (const name of readdirSync(folder)
	.filter(each => each.endsWith('.js'))
	.sort()) {
	const source = before + readFileSync(`${folder}/${name}`, 'latin1') + after;
	writeFileSync(`${folder}/${name}.cache`, new Script(source, {filename: name}).createCachedData());
}
